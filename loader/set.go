package loader

import (
	"cmp"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// Config says what a set is to be. Its zero value means the defaults throughout.
type Config struct {
	Root     string               // where it is pinned, on a bpf filesystem; DefaultRoot if empty
	Lock     string               // the lock file, outside of the bpf filesystem; DefaultLock if empty
	Sizes    bpf.Sizes            // of the tables; bpf.DefaultSizes() if zero
	Features bpf.Features         // of the program; bpf.DefaultFeatures() if zero. Frags is the loader's to decide
	Spec     *ebpf.CollectionSpec // the program and its maps, as from Compile; the committed object if nil
	Log      *slog.Logger         // what happens by itself, as in Watch; nowhere if nil
	Locked   func()               // called when the lock is held, before anything is looked at; may be nil

	schema uint32 // of Spec, for tests; that of package bpf if 0
}

// Set is the pinned maps of one schema, and the programs attached to interfaces on top of them. Its
// methods may be called concurrently; closing it leaves the shield up.
type Set struct {
	pins     pins
	log      *slog.Logger
	lock     *os.File
	spec     *ebpf.CollectionSpec // sized; not specialised
	features bpf.Features
	frags    bool

	maps    map[string]*ebpf.Map
	mapIDs  []ebpf.MapID
	secret  [2]uint64
	adopted bool
	afresh  string // why it was not adopted

	mu      sync.Mutex
	pending bool              // the maps are still beside the pinned set that they will replace
	before  string            // that set's directory
	litter  bool              // what is no longer used could not all be removed
	modes   map[string]Mode   // as Attach was asked for
	wanted  map[string]Mode   // interfaces to attach when they appear, that have no slot yet
	why     map[string]string // Attachment.Why
	retries map[string]retry  // attachments that Watch could not make
}

// Open takes the lock and adopts the pinned set, or makes a new one if there is none, or none that
// fits; Adopted says which. A new set is pinned as a whole or not at all. If an old set is there, it
// and the programs on it stay in force until Upgrade, so that the caller can fill the new one first.
//
// It returns a *LockedError if another process has the lock, and ErrNoBPFFS if Root can't be there.
func Open(c Config) (_ *Set, err error) {
	s, err := newSet(c)
	if err != nil {
		return nil, err
	}
	if err := s.pins.check(); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("raise the limit of locked memory: %w", err)
	}
	if s.lock, err = takeLock(cmp.Or(c.Lock, DefaultLock)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	if c.Locked != nil {
		c.Locked()
	}
	s.frags = haveFrags()
	if err := s.pins.recover(); err != nil {
		return nil, err
	}
	if err := s.adopt(); err != nil {
		return nil, err
	}
	if !s.adopted {
		if err := s.create(); err != nil {
			return nil, fmt.Errorf("create the set under %s: %w", s.pins, err)
		}
	}
	for name, m := range s.maps {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("inspect map %s: %w", name, err)
		}
		if id, ok := info.ID(); ok {
			s.mapIDs = append(s.mapIDs, id)
		}
	}
	if err := s.takeOver(); err != nil {
		return nil, err
	}
	return s, nil
}

func newSet(c Config) (*Set, error) {
	spec := c.Spec
	if spec == nil {
		var err error
		if spec, err = bpf.LoadLevee(); err != nil {
			return nil, err
		}
	}
	spec = spec.Copy()
	if err := cmp.Or(c.Sizes, bpf.DefaultSizes()).Apply(spec); err != nil {
		return nil, err
	}
	log := c.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	pins := rootPins(c.Root)
	pins.schema = cmp.Or(c.schema, pins.schema)
	return &Set{
		pins:     pins,
		log:      log,
		spec:     spec,
		features: cmp.Or(c.Features, bpf.DefaultFeatures()),
		modes:    make(map[string]Mode),
		wanted:   make(map[string]Mode),
		why:      make(map[string]string),
		retries:  make(map[string]retry),
	}, nil
}

// Adopted says whether the set was there before, with its contents, and if not, why it was made
// afresh.
func (s *Set) Adopted() (adopted bool, why string) { return s.adopted, s.afresh }

// Maps returns the set's maps by the names in package bpf. They belong to the set.
func (s *Set) Maps() map[string]*ebpf.Map { return s.maps }

// SchemaError says that the set which is to be replaced is of another schema, so that what stands in it
// can't be read.
type SchemaError struct {
	Have string // of the set that is pinned
	Want uint32 // of this program
}

func (e *SchemaError) Error() string {
	return fmt.Sprintf("the pinned set has schema %s, this program reads %d", e.Have, e.Want)
}

// Replaced opens the maps of the pinned set that this one is to replace, and which is in force until
// Upgrade. They are the caller's to close. There are none if there is no such set. Returns a *SchemaError
// if it is of another schema.
func (s *Set) Replaced() (map[string]*ebpf.Map, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.pending {
		return nil, nil // no set, no maps
	}
	if s.before != s.pins.set() {
		return nil, &SchemaError{filepath.Base(s.before), s.pins.schema}
	}
	maps, _, err := openMaps(s.before, tables(s.spec))
	return maps, err
}

// Root returns the directory under which the set is pinned.
func (s *Set) Root() string { return s.pins.root }

// Close closes the descriptors and gives the lock back. What is attached stays attached.
func (s *Set) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, m := range s.maps {
		errs = append(errs, m.Close())
	}
	s.maps = nil
	if s.pending {
		errs = append(errs, os.RemoveAll(s.pins.fresh()))
		s.pending = false
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
		s.lock = nil
	}
	return errors.Join(errs...)
}

// adopt opens the pinned set if it is as this set should be, and otherwise notes why it is not.
func (s *Set) adopt() error {
	if _, err := os.Stat(s.pins.set()); errors.Is(err, fs.ErrNotExist) {
		s.afresh = "no set was pinned"
		others, err := s.pins.sets()
		if err != nil {
			return err
		}
		for _, dir := range others {
			s.afresh = fmt.Sprintf("the pinned set has schema %s, this program has %d", filepath.Base(dir), s.pins.schema)
		}
		return nil
	} else if err != nil {
		return fmt.Errorf("open the set: %w", err)
	}
	maps, differences, err := openMaps(s.pins.set(), tables(s.spec))
	if err != nil {
		return err
	}
	if len(differences) == 0 {
		var meta bpf.Meta
		if err := maps[bpf.LeveeMapMeta].Lookup(uint32(0), &meta); err != nil {
			return errors.Join(fmt.Errorf("read the set's description: %w", err), closeMaps(maps))
		}
		s.secret = meta.Secret
		if meta.Schema != s.pins.schema || meta.Secret == [2]uint64{} {
			differences = append(differences, "its description is not one of this schema")
		}
	}
	if len(differences) > 0 {
		slices.Sort(differences)
		s.afresh = "the pinned set differs: " + strings.Join(differences, "; ")
		return closeMaps(maps)
	}
	s.maps, s.adopted = maps, true
	if err := os.MkdirAll(s.pins.links(), 0o700); err != nil {
		return fmt.Errorf("open the set: %w", err)
	}
	return nil
}

// openMaps opens what is pinned of the wanted maps, and says where it is not as wanted.
func openMaps(set string, want map[string]*ebpf.MapSpec) (maps map[string]*ebpf.Map, differences []string, err error) {
	maps = make(map[string]*ebpf.Map, len(want))
	for name, spec := range want {
		m, err := ebpf.LoadPinnedMap(mapPin(set, name), nil)
		if errors.Is(err, fs.ErrNotExist) {
			differences = append(differences, name+" is missing")
			continue
		}
		if errno := unix.Errno(0); err != nil && !errors.As(err, &errno) { // the kernel gave something else
			differences = append(differences, name+" is not a map")
			continue
		}
		if err != nil {
			return nil, nil, errors.Join(fmt.Errorf("open map %s: %w", name, err), closeMaps(maps))
		}
		maps[name] = m
		if d := difference(name, spec, m); d != "" {
			differences = append(differences, d)
		}
	}
	return maps, differences, nil
}

func closeMaps(maps map[string]*ebpf.Map) error {
	var errs []error
	for _, m := range maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// carried are the maps that a new set takes over from the one it replaces, where they fit: counters
// go on counting, and interfaces keep their slots. A schema that gives one of them another meaning
// must give it another shape or name.
var carried = []string{
	bpf.LeveeMapInterfaces, bpf.LeveeMapCounters, bpf.LeveeMapListCounters, bpf.LeveeMapLimitCounters, bpf.LeveeMapStats,
}

// create makes a new set beside the pinned one, of this schema or another; if there is none to be
// replaced, it takes its place.
func (s *Set) create() (err error) {
	existed := exists(s.pins.root)
	defer func() {
		if err != nil {
			_ = os.RemoveAll(s.pins.fresh())
			if !existed {
				s.pins.removeEmpty()
			}
		}
	}()
	for _, dir := range []string{filepath.Join(s.pins.fresh(), "maps"), s.pins.links()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	before, err := s.pins.predecessor()
	if err != nil {
		return err
	}
	var old map[string]*ebpf.Map
	if before != "" {
		if old, _, err = openMaps(before, tables(s.spec)); err != nil {
			return err
		}
	}
	defer func() { err = errors.Join(err, closeMaps(old)) }()

	s.maps = make(map[string]*ebpf.Map)
	for name, spec := range tables(s.spec) {
		m, err := s.take(old, name, spec)
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
		s.maps[name] = m
		if err := m.Pin(mapPin(s.pins.fresh(), name)); err != nil {
			return fmt.Errorf("pin map %s: %w", name, err)
		}
	}
	if err := s.describe(); err != nil {
		return err
	}
	switch s.before = before; before {
	case "":
		return s.pins.swap()
	case s.pins.set():
		err = carrySwitches(old, s.maps)
	default:
		// Of another schema's switches one is known: panic, where it always was.
		err = s.carryPanic()
	}
	s.pending = err == nil
	return err
}

// take clones a map of the set that is replaced if it is one to carry on, or creates it.
func (s *Set) take(old map[string]*ebpf.Map, name string, spec *ebpf.MapSpec) (*ebpf.Map, error) {
	if m := old[name]; m != nil && slices.Contains(carried, name) && difference(name, spec, m) == "" {
		return m.Clone()
	}
	return ebpf.NewMap(spec)
}

// describe writes the new set's meta: its schema, and a secret that nobody outside can know.
func (s *Set) describe() error {
	var random [16]byte
	rand.Read(random[:]) // never fails
	s.secret = [2]uint64{binary.NativeEndian.Uint64(random[:8]), binary.NativeEndian.Uint64(random[8:])}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("read the clock: %w", err)
	}
	meta := bpf.Meta{Schema: s.pins.schema, Secret: s.secret, Created: uint64(now.Nano())}
	if err := s.maps[bpf.LeveeMapMeta].Put(uint32(0), meta); err != nil {
		return fmt.Errorf("describe the set: %w", err)
	}
	return nil
}

// carrySwitches keeps the panic and monitor switches as they were: a set that is replaced must not
// start to drop what an operator has let pass.
func carrySwitches(old, fresh map[string]*ebpf.Map) error {
	from, to := old[bpf.LeveeMapControls], fresh[bpf.LeveeMapControls]
	if from == nil || from.ValueSize() != to.ValueSize() {
		return nil
	}
	var had, has bpf.Control
	if err := errors.Join(from.Lookup(uint32(0), &had), to.Lookup(uint32(0), &has)); err != nil {
		return fmt.Errorf("carry the switches over: %w", err)
	}
	has.Panic, has.Monitor = had.Panic, had.Monitor
	if err := to.Put(uint32(0), has); err != nil {
		return fmt.Errorf("carry the switches over: %w", err)
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
