package loader

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/levee-xdp/levee/bpf"
)

// ErrTooManyInterfaces says that every slot for an interface is taken.
var ErrTooManyInterfaces = fmt.Errorf("all %d slots are taken; detach an interface first", bpf.MaxInterfaces)

// slots is the table of interfaces: which slot of the counters is whose. A slot that is claimed is an
// interface that is wanted; its mode is 0 while nothing is attached, as when the interface is gone.
type slots struct {
	table *ebpf.Map
	entry []bpf.Interface
}

func readSlots(table *ebpf.Map) (*slots, error) {
	s := &slots{table: table, entry: make([]bpf.Interface, table.MaxEntries())}
	for i := range s.entry {
		if err := table.Lookup(uint32(i), &s.entry[i]); err != nil {
			return nil, fmt.Errorf("read interface slot %d: %w", i, err)
		}
	}
	return s, nil
}

func (s *slots) write(i int, e bpf.Interface) error {
	if s.entry[i] == e {
		return nil
	}
	if err := s.table.Put(uint32(i), e); err != nil {
		return fmt.Errorf("write interface slot %d: %w", i, err)
	}
	s.entry[i] = e
	return nil
}

// find returns the slot of an interface, or -1.
func (s *slots) find(name string) int {
	return slices.IndexFunc(s.entry, func(e bpf.Interface) bool { return e.Ifindex != 0 && slotName(e) == name })
}

// findIndex returns the slot that was last noted for an interface's number, or -1.
func (s *slots) findIndex(ifindex int) int {
	return slices.IndexFunc(s.entry, func(e bpf.Interface) bool { return e.Ifindex == uint32(ifindex) })
}

// claim returns the slot of an interface, a new one if it has none. The counters of a new one are
// set to zero: they are those of the interface that had it before.
func (s *slots) claim(name string, ifindex int, counters *ebpf.Map) (slot int, fresh bool, err error) {
	if i := s.find(name); i >= 0 {
		e := s.entry[i]
		e.Ifindex = uint32(ifindex)
		return i, false, s.write(i, e)
	}
	for i, e := range s.entry {
		if e.Ifindex != 0 {
			continue
		}
		if err := clearCounters(counters, i); err != nil {
			return 0, false, err
		}
		// The number comes last: a reader of the mapping takes a slot with a number as whole.
		e = bpf.Interface{Name: cName(name)}
		if err := s.write(i, e); err != nil {
			return 0, false, err
		}
		e.Ifindex = uint32(ifindex)
		return i, true, s.write(i, e)
	}
	return 0, false, ErrTooManyInterfaces
}

func (s *slots) free(name string) (bool, error) {
	i := s.find(name)
	if i < 0 {
		return false, nil
	}
	return true, s.write(i, bpf.Interface{})
}

func clearCounters(counters *ebpf.Map, slot int) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("clear the counters of slot %d: %w", slot, err)
	}
	zero := make([]bpf.Counter, cpus)
	per := counters.MaxEntries() / bpf.MaxInterfaces
	for i := range per {
		if err := counters.Put(uint32(slot)*per+i, zero); err != nil {
			return fmt.Errorf("clear the counters of slot %d: %w", slot, err)
		}
	}
	return nil
}

func slotName(e bpf.Interface) string {
	var b []byte
	for _, c := range e.Name {
		if c == 0 {
			break
		}
		b = append(b, byte(c))
	}
	return string(b)
}

func cName(name string) (c [16]int8) {
	for i := range min(len(name), len(c)-1) {
		c[i] = int8(name[i])
	}
	return c
}

var errBadName = errors.New("not an interface's name: 1 to 15 bytes")

func checkName(name string) error {
	if name == "" || len(name) > 15 {
		return fmt.Errorf("interface %q: %w", name, errBadName)
	}
	return nil
}
