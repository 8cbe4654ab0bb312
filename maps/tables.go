package maps

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
)

// ErrFull is what errors wrap when a table has no room for an entry. The error itself is a
// *FullError.
var ErrFull = errors.New("table is full")

// FullError says which entry found no room in which table, and which setting makes it larger.
type FullError struct {
	Prefix  string // the first prefix that found no room
	More    int    // how many others did not, either
	Table   string // the kernel's map
	Used    int    // entries in it
	Slots   int    // entries for which it is made
	Setting string // the size to raise: its path in the configuration; empty if there is none
}

func (e *FullError) Error() string {
	more := ""
	if e.More > 0 {
		more = fmt.Sprintf(" and %d more", e.More)
	}
	return fmt.Sprintf("no room for %s%s: %s", e.Prefix, more, e.Why())
}

// Why is the error without saying for whom there is no room.
func (e *FullError) Why() string {
	text := fmt.Sprintf("the table %s holds %d entries and is made for %d", e.Table, e.Used, e.Slots)
	if e.Setting != "" {
		text += "; raise " + e.Setting
	}
	return text
}

// Unwrap returns ErrFull.
func (e *FullError) Unwrap() error { return ErrFull }

// Changes counts what making a table equal to a wanted set took.
type Changes struct {
	Added    int // were not there
	Updated  int // were there with another list, mode, flag or expiry
	Removed  int // were there and are not wanted
	Kept     int // were there as wanted
	Repaired int // words of the tables that belonged to no entry or hid one, set right
	Late     int // of those added, found room only at last: their addresses may have passed in between
	Full     int // wanted entries that found no room; the error names the first
}

// Drift is how many entries differed from what was wanted.
func (c Changes) Drift() int { return c.Added + c.Updated + c.Removed + c.Repaired + c.Full }

// Tables is one pinned set of maps, opened.
type Tables struct {
	Bans       *Bans
	Allows     *Allows
	Limits     *Limits
	Sources    *Sources
	Counters   *Counters
	Events     *Events
	Control    *Control
	Interfaces *Interfaces

	mapped [][]byte
}

// Open maps the tables of a set into memory, and puts right what a killed writer may have left
// half done. The maps stay the caller's, who closes them after the Tables. A set has one writer
// at a time: the loader's lock sees to that.
func Open(m map[string]*ebpf.Map) (_ *Tables, err error) {
	t := &Tables{}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	o := opener{maps: m, tables: t}

	meta := array[bpf.Meta](&o, bpf.LeveeMapMeta, false)
	control := array[bpf.Control](&o, bpf.LeveeMapControls, true)
	if o.err != nil {
		return nil, o.err
	}
	if meta[0].Schema != bpf.Schema {
		return nil, fmt.Errorf("open tables: schema %d, this version speaks %d", meta[0].Schema,
			bpf.Schema)
	}
	hash := hasher{meta[0].Secret}

	t.Control = &Control{c: &control[0]}
	t.Interfaces = &Interfaces{slots: array[bpf.Interface](&o, bpf.LeveeMapInterfaces, false)}
	t.Bans = openBans(&o, hash, &control[0])
	t.Allows = openAllows(&o)
	t.Limits = openLimits(&o, &control[0])
	t.Sources = openSources(&o, hash, t.Limits)
	t.Counters = openCounters(&o, t.Interfaces)
	t.Events = &Events{ring: o.get(bpf.LeveeMapEvents)}
	if o.err != nil {
		return nil, o.err
	}
	t.Bans.adopt()
	if err := t.Allows.adopt(); err != nil {
		return nil, err
	}
	if err := t.Limits.adopt(); err != nil {
		return nil, err
	}
	return t, nil
}

// Close unmaps the tables and leaves them as they are in the kernel. Nothing of the Tables may be
// in use then, or be used after it.
func (t *Tables) Close() error {
	var errs []error
	for _, mem := range t.mapped {
		if err := unix.Munmap(mem); err != nil {
			errs = append(errs, fmt.Errorf("unmap tables: %w", err))
		}
	}
	t.mapped = nil
	return errors.Join(errs...)
}

// opener gathers maps by name, and the first error.
type opener struct {
	maps   map[string]*ebpf.Map
	tables *Tables
	err    error
}

func (o *opener) get(name string) *ebpf.Map {
	m := o.maps[name]
	if m == nil && o.err == nil {
		o.err = fmt.Errorf("open tables: map %s is missing", name)
	}
	return m
}

// array maps an array into memory, for as long as the Tables are open.
func array[T any](o *opener, name string, write bool) []T {
	m := o.get(name)
	if o.err != nil {
		return nil
	}
	mem, view, err := mapArray[T](m, write)
	if err != nil {
		o.err = fmt.Errorf("map %s: %w", name, err)
		return nil
	}
	o.tables.mapped = append(o.tables.mapped, mem)
	return view
}

// hashed is array, for a table whose size must be a power of two.
func hashed[T any](o *opener, name string) []T {
	view := array[T](o, name, true)
	if o.err == nil && bits.OnesCount(uint(len(view))) != 1 {
		o.err = fmt.Errorf("map %s: %d entries, not a power of two", name, len(view))
	}
	return view
}

// mapArray maps an array into memory. The view is one T for each entry of the map, or for a part
// of one: what T is must divide the map's value.
func mapArray[T any](m *ebpf.Map, write bool) ([]byte, []T, error) {
	if m.Type() != ebpf.Array || m.Flags()&unix.BPF_F_MMAPABLE == 0 {
		return nil, nil, fmt.Errorf("a %s with flags %#x cannot be mapped", m.Type(), m.Flags())
	}
	var zero T
	size := int(unsafe.Sizeof(zero))
	stride := int(m.ValueSize()+7) &^ 7 // as the kernel rounds it
	if stride%size != 0 {
		return nil, nil, fmt.Errorf("value of %d bytes, expected %d", stride, size)
	}
	length := stride * int(m.MaxEntries())
	page := os.Getpagesize()
	prot := unix.PROT_READ
	if write {
		prot |= unix.PROT_WRITE
	}
	mem, err := unix.Mmap(m.FD(), 0, (length+page-1)/page*page, prot, unix.MAP_SHARED)
	if err != nil {
		return nil, nil, fmt.Errorf("mmap: %w", err)
	}
	return mem, unsafe.Slice((*T)(unsafe.Pointer(&mem[0])), length/size), nil
}
