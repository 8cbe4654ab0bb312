package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Config says where the log stands, and how much of it is kept.
type Config struct {
	Path  string           // of the file that is written; those before stand beside it
	Size  int64            // of a file, in bytes, after which the next is begun
	Files int              // how many are kept, the one that is written among them
	Copy  Sink             // told every record, too; may be nil
	Now   func() time.Time // nil: time.Now
	Log   *slog.Logger     // nil: none
}

// Sink takes copies of records.
type Sink interface {
	Send(line []byte, failure bool) error
	Close() error
}

// flushEvery is how often the file is synced and its head anchored. What a power failure takes is at
// most what was written since; a daemon that dies takes nothing.
const flushEvery = time.Second

// Log is the audit log. It is safe for concurrent use.
type Log struct {
	config Config
	now    func() time.Time
	log    *slog.Logger
	copies chan copied

	// Held while the file is synced and its head written; taken with mu held, and kept without, so that
	// nobody's record waits for a disk.
	sealing sync.Mutex

	mu       sync.Mutex // guards what follows
	file     *os.File
	size     int64
	first    uint64 // the sequence of the file's first record; 0: it has none
	head     head
	anchored uint64 // the sequence that was anchored last
	failing  error
	lost     uint64 // records that could not be written, since the last that could
	limiters limiters
	missed   uint64 // copies that found no room
}

type copied struct {
	line    []byte
	failure bool
}

// Open opens the log, or begins one. What is wrong with the end of the one that is there is returned
// as a problem and becomes a record; the log goes on behind it.
func Open(c Config) (_ *Log, problem string, err error) {
	l := &Log{config: c, now: c.Now, log: c.Log, copies: make(chan copied, 1024), limiters: newLimiters()}
	if l.now == nil {
		l.now = time.Now
	}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		return nil, "", fmt.Errorf("audit log: %w", err)
	}
	if err := l.openFile(); err != nil {
		return nil, "", fmt.Errorf("audit log: %w", err)
	}
	problem, recovered, err := l.resume()
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("audit log: %w", err), l.file.Close())
	}
	if recovered != "" {
		l.Write(&state.AuditEvent{Action: "audit-recover", By: state.Operator("levee"), Reason: recovered})
	}
	if problem != "" {
		l.Write(&state.AuditEvent{Action: "audit-broken", Failed: true, By: state.Operator("levee"), Reason: problem})
	}
	// Where nothing was anchored yet, what is there is.
	if _, err := readHead(c.Path); err != nil {
		if err := writeHead(c.Path, l.head); err != nil {
			return nil, "", errors.Join(fmt.Errorf("audit log: %w", err), l.file.Close())
		}
	}
	return l, problem, nil
}

func (l *Log) openFile() error {
	f, err := os.OpenFile(l.config.Path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return errors.Join(err, f.Close())
	case !info.Mode().IsRegular():
		return errors.Join(fmt.Errorf("%s is not a regular file", l.config.Path), f.Close())
	}
	l.file, l.size, l.first = f, info.Size(), 0
	return nil
}

// resume finds the chain's end. A line that was cut off in a crash is taken away, and said.
func (l *Log) resume() (problem, recovered string, err error) {
	whole, last, err := lastLine(l.file, l.size)
	if err != nil {
		return "", "", err
	}
	if torn := l.size - whole; torn > 0 {
		if err := l.file.Truncate(whole); err != nil {
			return "", "", err
		}
		l.size = whole
		recovered = fmt.Sprintf("the last %d bytes were no whole record, and were taken away", torn)
	}
	if l.size > 0 {
		if line, err := firstLine(l.file); err == nil {
			if s, err := parseLine(line); err == nil {
				l.first = s.Event.Sequence
			}
		}
	}
	files, err := Files(l.config.Path)
	if err != nil {
		return "", "", err
	}
	if len(last) == 0 && len(files) > 1 {
		if last, err = lastOf(files[len(files)-2]); err != nil {
			return "", "", err
		}
	}
	anchor, err := readHead(l.config.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		anchor, err = head{}, nil
		if len(last) > 0 {
			problem = "there is a log, and nothing that says where it ended: the file " + headPath(l.config.Path) + " is missing"
		}
	case err != nil:
		problem, anchor, err = err.Error(), head{}, nil
	}
	found := head{Hash: zeroHash}
	if len(last) > 0 {
		if line, bad := parseLine(last); bad == nil {
			found = head{Sequence: line.Event.Sequence, Hash: hashOf(last)}
		} else {
			found.Hash = hashOf(last)
			problem = "its last line makes no sense"
		}
	}
	l.head = found
	l.head.First = anchor.First
	switch {
	case problem != "":
	case found.Sequence < anchor.Sequence:
		problem = fmt.Sprintf("it ends with record %d, and ended with record %d when it was anchored: the end was cut off", found.Sequence, anchor.Sequence)
	case found.Sequence == anchor.Sequence && anchor.Sequence > 0 && found.Hash != anchor.Hash:
		problem = fmt.Sprintf("its last record, %d, is not what was written", found.Sequence)
	}
	l.head.Sequence = max(found.Sequence, anchor.Sequence)
	return problem, recovered, err
}

// Write writes an event. Whether it worked out is told by Failing: what was decided has been decided.
func (l *Log) Write(e *state.AuditEvent) {
	rs := records(e, l.now())
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range rs {
		l.put(&rs[i])
	}
}

// Refuse writes a refusal. Of many of a kind most are only counted, and the count is written.
func (l *Log) Refuse(e *state.AuditEvent) {
	now := l.now()
	e.Refused = true
	l.mu.Lock()
	defer l.mu.Unlock()
	count, ok := l.limiters.of(e).take(e, now)
	if !ok {
		return
	}
	r := records(e, now)[0]
	r.Levee.Suppressed = count
	l.put(&r)
}

// Failing returns why records are lost, or nil.
func (l *Log) Failing() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failing
}

// Probe tells whether the next change could be recorded. While records are lost it tries to say so.
func (l *Log) Probe() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing == nil {
		return nil
	}
	l.confess()
	return l.failing
}

// put chains a record and writes it. What could not be written is counted, and the count is the
// first thing that is written when there is room again.
func (l *Log) put(r *Record) {
	if l.failing != nil && !l.confess() {
		l.lost++
		return
	}
	if err := l.append(r); err != nil {
		if l.failing == nil {
			l.log.Error("the audit log can't be written; changes go on, and those that are lost are counted", "path", l.config.Path, "error", err)
		}
		l.failing = err
		l.lost++
	}
}

// confess writes how many records were lost.
func (l *Log) confess() bool {
	e := &state.AuditEvent{Action: "audit-lost", Failed: true, By: state.Operator("levee"),
		Reason: fmt.Sprintf("%d records could not be written: %v", l.lost, l.failing)}
	r := records(e, l.now())[0]
	if err := l.append(&r); err != nil {
		l.failing = err
		return false
	}
	l.log.Info("the audit log is written again", "path", l.config.Path, "lost", l.lost)
	l.lost, l.failing = 0, nil
	return true
}

func (l *Log) append(r *Record) error {
	if l.file == nil {
		return fs.ErrClosed
	}
	if l.size >= l.config.Size {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	r.Event.Sequence, r.Levee.Previous = l.head.Sequence+1, l.head.Hash
	line, err := encode(r)
	if err != nil {
		return err
	}
	n, err := l.file.Write(append(line, '\n'))
	if err != nil {
		if n > 0 {
			err = errors.Join(err, l.file.Truncate(l.size))
		}
		return err
	}
	l.size += int64(n)
	l.head.Sequence, l.head.Hash = r.Event.Sequence, hashOf(line)
	if l.first == 0 {
		l.first = r.Event.Sequence
	}
	if l.head.First == 0 {
		l.head.First = r.Event.Sequence
	}
	if l.config.Copy != nil {
		select {
		case l.copies <- copied{line, r.Event.Outcome == "failure"}:
		default:
			l.missed++
		}
	}
	return nil
}

func encode(r *Record) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(r); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

func hashOf(line []byte) string {
	h := sha256.Sum256(line)
	return hex.EncodeToString(h[:])
}

// rotate sets the file aside under the number of its first record, and begins the next. Those that
// are too many go, after the anchor has said so.
func (l *Log) rotate() error {
	if err := l.anchor(); err != nil {
		return err
	}
	aside := rotated(l.config.Path, l.first)
	if err := os.Rename(l.config.Path, aside); err != nil {
		return err
	}
	before := l.file
	if err := l.openFile(); err != nil {
		return errors.Join(err, os.Rename(aside, l.config.Path))
	}
	if err := before.Close(); err != nil {
		l.log.Warn("a file of the audit log was not closed well", "path", aside, "error", err)
	}
	files, err := Files(l.config.Path)
	if err != nil || len(files) <= l.config.Files {
		return err
	}
	gone := files[:len(files)-l.config.Files]
	if n, ok := firstOf(files[len(gone)], l.config.Path); ok {
		l.head.First = n
	} else {
		l.head.First = l.head.Sequence + 1
	}
	if err := writeHead(l.config.Path, l.head); err != nil {
		return err
	}
	for _, path := range gone {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// anchor syncs the file, and then notes how far it goes.
func (l *Log) anchor() error {
	if l.file == nil || l.anchored == l.head.Sequence {
		return nil
	}
	l.sealing.Lock()
	defer l.sealing.Unlock()
	if err := seal(l.file, l.config.Path, l.head); err != nil {
		return err
	}
	l.anchored = l.head.Sequence
	return nil
}

// seal syncs a file, and then notes how far it goes.
func seal(f *os.File, path string, h head) error {
	if err := f.Sync(); err != nil {
		return err
	}
	return writeHead(path, h)
}

// anchorAside does what anchor does, while others write on.
func (l *Log) anchorAside() error {
	l.mu.Lock()
	if l.file == nil || l.anchored == l.head.Sequence {
		l.mu.Unlock()
		return nil
	}
	l.sealing.Lock() // so that nobody closes the file, or writes a newer head, meanwhile
	f, h := l.file, l.head
	l.mu.Unlock()
	err := seal(f, l.config.Path, h)
	l.sealing.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.anchored = max(l.anchored, h.Sequence)
	case l.failing == nil:
		l.log.Error("the audit log can't be synced", "path", l.config.Path, "error", err)
		l.failing = err
	}
	return err
}

// String names the task.
func (l *Log) String() string { return "audit" }

// Ready is closed: the log is there as soon as it is opened.
func (l *Log) Ready() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// Run syncs the log, writes what was only counted, and hands copies on, until the context ends.
func (l *Log) Run(ctx context.Context) error {
	ticker := time.NewTicker(flushEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case c := <-l.copies:
			if err := l.config.Copy.Send(c.line, c.failure); err != nil {
				l.log.Debug("a record could not be copied", "error", err)
			}
		case <-ticker.C:
			l.flush()
		}
	}
}

func (l *Log) flush() {
	l.mu.Lock()
	for _, r := range l.limiters.due(l.now()) {
		l.put(&r)
	}
	if l.missed > 0 {
		l.log.Warn("records were not copied: whoever takes the copies is too slow", "records", l.missed)
		l.missed = 0
	}
	l.mu.Unlock()
	_ = l.anchorAside() // it is told by Failing
}

// Close writes what was only counted, and anchors the end.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	for _, r := range l.limiters.due(l.now().Add(time.Hour)) {
		l.put(&r)
	}
	err := l.anchor() // waits for one that is under way
	l.sealing.Lock()
	defer l.sealing.Unlock()
	err = errors.Join(err, l.file.Close())
	l.file = nil
	if l.config.Copy != nil {
		for len(l.copies) > 0 {
			c := <-l.copies
			_ = l.config.Copy.Send(c.line, c.failure) // it is in the file
		}
		err = errors.Join(err, l.config.Copy.Close())
	}
	return err
}

// lastLine returns where a file's last whole line ends, and that line.
func lastLine(f io.ReaderAt, size int64) (whole int64, line []byte, err error) {
	const step = 64 << 10
	var tail []byte
	for at := size; at > 0; {
		from := max(at-step, 0)
		part := make([]byte, at-from)
		if _, err := f.ReadAt(part, from); err != nil {
			return 0, nil, err
		}
		tail, at = append(part, tail...), from
		end := bytes.LastIndexByte(tail, '\n')
		if end < 0 {
			continue
		}
		if begin := bytes.LastIndexByte(tail[:end], '\n'); begin >= 0 || at == 0 {
			return at + int64(end) + 1, tail[begin+1 : end], nil
		}
	}
	return 0, nil, nil
}
