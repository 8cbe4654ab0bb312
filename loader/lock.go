package loader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// LockedError says that another process holds the lock: two daemons must not share one set.
type LockedError struct {
	Path  string    // the lock file
	PID   int       // its holder; 0 if the file does not say
	Name  string    // of the holder's program; empty if it is not known
	Since time.Time // when it took the lock; zero if that is not known
}

// Error names the holder and the lock, and says what to do.
func (e *LockedError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "lock %s: ", e.Path)
	if e.PID == 0 {
		b.WriteString("another process holds it")
	} else {
		fmt.Fprintf(&b, "process %d", e.PID)
		if e.Name != "" {
			fmt.Fprintf(&b, " (%s)", e.Name)
		}
		b.WriteString(" holds it")
	}
	if !e.Since.IsZero() {
		fmt.Fprintf(&b, " since %s", e.Since.Format(time.RFC3339))
	}
	b.WriteString("; one daemon at a time shields a host: stop that one first, its shield stays up")
	return b.String()
}

// takeLock locks path and writes this process's id to it. Closing the file gives the lock back; the
// file stays, for removing it would let two processes lock two files of one name.
func takeLock(path string) (_ *os.File, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, lockError(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, lockError(path, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
	case errors.Is(err, unix.EWOULDBLOCK):
		return nil, holderOf(path, f)
	case err != nil:
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if err := f.Truncate(0); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// lockError says what to do where the lock can't be written.
func lockError(path string, err error) error {
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("lock %s: %w; mount its filesystem writable, in a systemd unit add its directory to ReadWritePaths=, or set another path (lock)", path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("lock %s: %w; the daemon must be able to write there: give it the directory, or set another path (lock)", path, err)
	}
	return fmt.Errorf("lock %s: %w", path, err)
}

// holderOf says who holds a locked file, as far as it can be known: the holder wrote to it, and to
// nothing else than its number.
func holderOf(path string, f *os.File) *LockedError {
	e := &LockedError{Path: path, PID: readPID(f)}
	if info, err := f.Stat(); err == nil {
		e.Since = info.ModTime().UTC().Truncate(time.Second)
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", e.PID)); err == nil {
		e.Name = strings.TrimSpace(string(name))
	}
	return e
}

func readPID(f io.Reader) int {
	b, _ := io.ReadAll(io.LimitReader(f, 32))
	pid, _ := strconv.Atoi(string(bytes.TrimSpace(b)))
	return pid
}
