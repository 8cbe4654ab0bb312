package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gaissmai/bart"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// MaxLists is how many origins can speak; the kernel counts for each.
const MaxLists = 1024

var (
	bucketMeta         = []byte("meta")
	bucketSegments     = []byte("segments")
	bucketLists        = []byte("lists")
	bucketBoots        = []byte("boots")
	bucketAllows       = []byte("allows")
	bucketLimits       = []byte("limits")
	bucketLimitNumbers = []byte("limit_numbers")
	bucketInterfaces   = []byte("interfaces")
	bucketTokens       = []byte("tokens")

	buckets = [][]byte{bucketMeta, bucketSegments, bucketLists, bucketBoots, bucketAllows,
		bucketLimits, bucketLimitNumbers, bucketInterfaces, bucketTokens}
	// Those that files of earlier versions lack.
	laterBuckets = [][]byte{bucketTokens}

	keyLog = []byte("log") // first and next segment

	keyUnfilled = []byte("unfilled") // there until what the kernel held is in here: see Filled
	keyWall     = []byte("wall")     // the wall clock at the last commit, ns
)

// Config says where the state stands and by which clock it lives.
type Config struct {
	Path  string
	Clock Clock        // nil: the system's
	Log   *slog.Logger // nil: none
	// Dropped is told of what Open takes back, part by part, of a whole that was cut short; may be nil.
	Dropped func(Dropped)
}

// Store holds the state: all of it in memory, and on disk before a change is answered. It is safe
// for concurrent use; changes that wait for each other share a write.
type Store struct {
	config Config
	clock  Clock
	log    *slog.Logger
	db     *bbolt.DB
	file   *os.File // that db has open
	before *heads   // of a change that failed and could not be undone yet; nil if there is none
	fresh  bool
	doubt  error

	queue     sync.Mutex // guards waiting
	waiting   []*request
	writer    sync.Mutex            // held by whoever commits
	undecided bool                  // something of a whole is in force that may yet be taken back; the writer's
	failure   atomic.Pointer[Error] // of the last write, nil if it succeeded
	left      atomic.Pointer[Error] // see Left

	mu sync.RWMutex // guards what follows; changed by the writer alone
	memory
}

type memory struct {
	*claims
	segments   segments
	names      []Origin // by list
	numbers    map[Origin]uint16
	boots      []boot
	boot       uint16 // this one
	bootSaved  bool
	wall       int64 // the wall clock at the last commit, ns
	allows     allowTable
	proxies    *bart.Table[Prefix]
	trials     trials
	limits     limitTable
	interfaces map[string]Interface
	tokens     *tokenTable
}

// segments is what is known of the log without reading it.
type segments struct {
	first, next uint64
	entries     int
}

// DamagedError says that the file is there, and is not what was written.
type DamagedError struct {
	Path string
	Err  error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("state %s is damaged: %v", e.Path, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// Lost says that the state was damaged at start, and where the file was put.
type Lost struct {
	Err   error
	Aside string
}

// OpenOrSetAside opens the state. A damaged file is renamed, never overwritten, and a new one is
// begun; Lost is then not nil, and the caller must not take the emptiness for a decision.
func OpenOrSetAside(c Config) (*Store, *Lost, error) {
	s, err := Open(c)
	damaged, ok := errors.AsType[*DamagedError](err)
	if !ok {
		return s, nil, err
	}
	now := time.Now
	if c.Clock != nil {
		now = c.Clock.Now
	}
	aside := fmt.Sprintf("%s.corrupt-%s", c.Path, now().UTC().Format("20060102T150405Z"))
	for n := 2; ; n++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
		aside = fmt.Sprintf("%s.corrupt-%s-%d", c.Path, now().UTC().Format("20060102T150405Z"), n)
	}
	if err := os.Rename(c.Path, aside); err != nil {
		return nil, nil, fmt.Errorf("set the damaged state aside: %w", errors.Join(err, damaged))
	}
	s, err = Open(c)
	return s, &Lost{Err: damaged, Aside: aside}, err
}

// Open reads the state, or begins one where there is no file. Returns a DamagedError if the file
// is not what was written.
func Open(c Config) (*Store, error) {
	s := &Store{config: c, clock: c.Clock, log: c.Log}
	if s.clock == nil {
		s.clock = SystemClock{}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	dir := filepath.Dir(c.Path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("state directory: %w", advised(err))
	}
	info, err := os.Stat(c.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.begin(); err != nil {
			return nil, fmt.Errorf("begin state %s: %w", c.Path, advised(err))
		}
	case err != nil:
		return nil, fmt.Errorf("state: %w", err)
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("state %s is not a regular file", c.Path)
	case info.Size() == 0:
		return nil, &DamagedError{c.Path, errors.New("it is empty")} // bbolt would begin a new one in it
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	if err := s.dropLeft(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func options() *bbolt.Options {
	o := *bbolt.DefaultOptions
	o.Timeout = time.Second
	o.FreelistType = bbolt.FreelistMapType
	o.NoFreelistSync = true
	return &o
}

// begin makes a new file under another name and renames it when it is whole, so that a file which
// is there and empty can only be a damaged one.
func (s *Store) begin() error {
	path := s.config.Path + ".new"
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(path, 0o600, options())
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		for _, b := range buckets {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(
			putSchema(meta),
			meta.Put(keyUnfilled, []byte{1}),
			meta.Put(keyLog, encodeLog(segments{first: 1, next: 1})))
	})
	if err = errors.Join(err, db.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	if err := os.Rename(path, s.config.Path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func (s *Store) open() (err error) {
	defer s.catch(&err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	path, o := s.config.Path, options()
	checked := false
	o.OpenFile = func(name string, flag int, mode os.FileMode) (*os.File, error) {
		f, err := os.OpenFile(name, flag&^os.O_CREATE, mode)
		s.file = f
		if err != nil || checked {
			return f, err
		}
		checked = true
		if err = lockFile(f, o.Timeout); err == nil {
			s.doubt, err = checkFile(f)
		}
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		return f, nil
	}
	s.db, err = bbolt.Open(path, 0o600, o)
	switch {
	case errors.Is(err, berrors.ErrTimeout), errors.Is(err, errHeld):
		return fmt.Errorf("state %s: %w", path, errHeld)
	case err != nil && fromSystem(err):
		return fmt.Errorf("state %s: %w", path, advised(err))
	case err != nil:
		return &DamagedError{path, err}
	}
	if err = s.addBuckets(); err != nil {
		return errors.Join(fmt.Errorf("state %s: %w", path, err), s.db.Close())
	}
	if err = s.upgrade(); err == nil {
		err = s.db.View(s.load)
	}
	if err != nil {
		return errors.Join(err, s.db.Close())
	}
	return nil
}

// addBuckets adds to a file of an earlier version what it lacks.
func (s *Store) addBuckets() error {
	var lacks [][]byte
	err := s.db.View(func(tx *bbolt.Tx) error {
		for _, b := range laterBuckets {
			if tx.Bucket(b) == nil {
				lacks = append(lacks, b)
			}
		}
		return nil
	})
	if err != nil || len(lacks) == 0 {
		return err
	}
	return s.db.Update(func(tx *bbolt.Tx) error {
		for _, b := range lacks {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	})
}

// fromSystem tells whether it was the system that failed, and not the file's contents.
func fromSystem(err error) bool {
	_, isPath := errors.AsType[*fs.PathError](err)
	_, isErrno := errors.AsType[syscall.Errno](err)
	return isPath || isErrno
}

// catch turns a panic into a DamagedError: bbolt panics on pages that make no sense, and a file that
// was cut short faults where it is mapped.
func (s *Store) catch(err *error) {
	if p := recover(); p != nil {
		*err = &DamagedError{s.config.Path, fmt.Errorf("%v", p)}
	}
}

// Close closes the file. What was answered is on disk already.
func (s *Store) Close() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	return s.shut()
}

// Fresh tells whether the file was begun, at this start or at one before that did not get as far as
// Filled: its emptiness then is no decision, and what the kernel holds must not be measured by it.
func (s *Store) Fresh() bool { return s.fresh }

// Filled notes that all that the kernel held is in the state, so that its contents count from the next
// start on. It is durable when this returns.
func (s *Store) Filled() error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if failed := s.write("note that the state is filled", func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Delete(keyUnfilled)
	}); failed != nil {
		return failed
	}
	return nil
}

// Doubt says that the file was damaged in a way that may have cost the last change, and no more; nil
// if it was not.
func (s *Store) Doubt() error { return s.doubt }

// Failure returns what went wrong with the last write, or nil.
func (s *Store) Failure() *Error { return s.failure.Load() }

func encodeLog(g segments) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, g.first), g.next)
}

func segmentKey(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// write runs a transaction. After an error nothing of it is on disk, and the caller has changed
// nothing in memory.
func (s *Store) write(what string, f func(*bbolt.Tx) error) (failed *Error) {
	defer func() {
		if p := recover(); p != nil {
			failed = &Error{Code: CodeStorage, Field: "state", Value: s.config.Path, Detail: fmt.Sprintf("%s: the file is damaged: %v", what, p)}
		}
		s.failure.Store(failed)
	}()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	if err := s.update(f); err != nil {
		return &Error{Code: CodeStorage, Field: "state", Value: s.config.Path, Detail: fmt.Sprintf("%s: %v", what, advised(err))}
	}
	return nil
}
