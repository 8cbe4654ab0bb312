package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// What stands here works on the pins alone: without a daemon, or beside one that hangs. It takes no
// lock. An empty root means DefaultRoot.

// SetPanic throws the panic switch of everything that is pinned under a root: while it is on, every
// packet passes. It returns ErrNoSet if nothing is pinned.
func SetPanic(root string, on bool) error {
	dirs, err := rootPins(root).sets()
	if err != nil {
		return err
	}
	if len(dirs) == 0 {
		return fmt.Errorf("panic switch under %s: %w", rootPins(root), ErrNoSet)
	}
	var errs []error
	for _, dir := range dirs {
		m, err := ebpf.LoadPinnedMap(mapPin(dir, bpf.LeveeMapControls), nil)
		if err != nil {
			errs = append(errs, fmt.Errorf("panic switch of %s: %w", dir, err))
			continue
		}
		errs = append(errs, throwPanic(m, on), m.Close())
	}
	return errors.Join(errs...)
}

// Panic tells whether a panic switch under a root is on. It returns ErrNoSet if nothing is pinned.
func Panic(root string) (bool, error) {
	dirs, err := rootPins(root).sets()
	if err != nil {
		return false, err
	}
	if len(dirs) == 0 {
		return false, fmt.Errorf("panic switch under %s: %w", rootPins(root), ErrNoSet)
	}
	for _, dir := range dirs {
		if on, err := panicOf(dir); on || err != nil {
			return on, err
		}
	}
	return false, nil
}

// The panic switch is the first word of controls, in every schema.
func panicOf(set string) (bool, error) {
	m, err := ebpf.LoadPinnedMap(mapPin(set, bpf.LeveeMapControls), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("panic switch of %s: %w", set, err)
	}
	defer m.Close()
	on := false
	err = mapWord(m, func(word *uint32) { on = atomic.LoadUint32(word) != 0 })
	return on, err
}

func throwPanic(controls *ebpf.Map, on bool) error {
	var v uint32
	if on {
		v = 1
	}
	return mapWord(controls, func(word *uint32) { atomic.StoreUint32(word, v) })
}

// mapWord hands over the first word of an array in place: to write the whole entry by a system call
// could undo what a daemon writes at the same moment.
func mapWord(m *ebpf.Map, f func(*uint32)) error {
	mem, err := unix.Mmap(m.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("panic switch: %w", err)
	}
	f((*uint32)(unsafe.Pointer(unsafe.SliceData(mem))))
	return unix.Munmap(mem)
}

// DetachInterface takes the shield off an interface and forgets it. It returns ErrNotAttached if
// nothing under the root shields an interface of that name.
func DetachInterface(root, name string) error {
	p := rootPins(root)
	if err := checkName(name); err != nil {
		return err
	}
	freed, err := p.freeSlots(func(n string) bool { return n == name })
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	program, found, err := p.unlink(pinName(name))
	if err := errors.Join(err, p.unpinProgram(program)); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	if !found && !freed {
		return fmt.Errorf("detach %s: %w", name, ErrNotAttached)
	}
	return nil
}

// freeSlots frees slots in every set. It comes before the links go, so that a daemon that still runs
// does not find an interface that is wanted and not attached.
func (p pins) freeSlots(which func(name string) bool) (freed bool, err error) {
	dirs, err := p.sets()
	if err != nil {
		return false, err
	}
	for _, dir := range dirs {
		table, err := ebpf.LoadPinnedMap(mapPin(dir, bpf.LeveeMapInterfaces), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return freed, err
		}
		f, err := freeSlots(table, which)
		freed = freed || f
		if err := errors.Join(err, table.Close()); err != nil {
			return freed, err
		}
	}
	return freed, nil
}

func freeSlots(table *ebpf.Map, which func(name string) bool) (freed bool, err error) {
	if table.ValueSize() != uint32(unsafe.Sizeof(bpf.Interface{})) {
		return false, nil // of another schema
	}
	t, err := readSlots(table)
	if err != nil {
		return false, err
	}
	for i, e := range t.entry {
		if e.Ifindex != 0 && which(slotName(e)) {
			if err := t.write(i, bpf.Interface{}); err != nil {
				return freed, err
			}
			freed = true
		}
	}
	return freed, nil
}

// Remove takes everything down that is pinned under a root, of every schema: programs are detached,
// pins removed. It returns what it did, a line each; nothing if nothing was there. It goes on past
// what it can't remove, and says so at the end.
func Remove(root string) (done []string, err error) {
	p := rootPins(root)
	if !exists(p.root) {
		return nil, nil
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	var errs []error
	if _, err := p.freeSlots(func(string) bool { return true }); err != nil {
		errs = append(errs, err)
	}
	names, err := p.linkPins()
	if err != nil {
		errs = append(errs, err)
	}
	for _, pin := range names {
		if _, _, err := p.unlink(pin); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", ifaceName(pin), err))
			continue
		}
		done = append(done, "detached "+ifaceName(pin))
	}
	if err := os.RemoveAll(p.programs()); err != nil {
		errs = append(errs, fmt.Errorf("remove the pins of programs: %w", err))
	}
	dirs, err := p.sets()
	if err != nil {
		errs = append(errs, err)
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("remove set: %w", err))
			continue
		}
		done = append(done, "removed the maps of "+filepath.Clean(dir))
	}
	p.removeEmpty()
	return done, errors.Join(errs...)
}
