package maps

import (
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// Interface is one slot of the counters, and the interface that has it. The loader gives them out.
type Interface struct {
	Slot  uint32
	Index int
	Name  string
	Mode  AttachMode
}

// AttachMode says where on an interface's way in the program runs.
type AttachMode uint32

// The modes.
const (
	ModeNative  AttachMode = 1 // in the driver
	ModeGeneric AttachMode = 2 // behind it, on socket buffers
)

// String returns the mode's name in commands and metrics.
func (m AttachMode) String() string {
	switch m {
	case ModeNative:
		return "native"
	case ModeGeneric:
		return "generic"
	}
	return "unknown"
}

// Interfaces is the list of slots of the counters. It is read here, never written.
type Interfaces struct{ slots []bpf.Interface }

// List returns the slots that are taken, in their order.
func (i *Interfaces) List() []Interface {
	var list []Interface
	for n := range i.slots {
		s := &i.slots[n]
		index := atomic.LoadUint32(&s.Ifindex)
		if index == 0 {
			continue
		}
		name := make([]byte, 0, len(s.Name))
		for _, c := range s.Name {
			if c == 0 {
				break
			}
			name = append(name, byte(c))
		}
		list = append(list, Interface{uint32(n), int(index), string(name), AttachMode(atomic.LoadUint32(&s.Mode))})
	}
	return list
}
