package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/levee-xdp/levee/bpf"
)

// pinned is a link of ours, as it was found.
type pinned struct {
	pin     string
	id      link.ID
	ifindex int // 0: its interface is gone
	program ebpf.ProgramID
	device  *device // nil if the interface is gone or in another network namespace
}

// inspect opens a pinned link, looks at it and at its interface, and closes it.
func (p pins) inspect(pin string) (*pinned, error) {
	l, err := link.LoadPinnedLink(p.link(pin), nil)
	if err != nil {
		return nil, fmt.Errorf("open the link of %s: %w", ifaceName(pin), err)
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return nil, fmt.Errorf("inspect the link of %s: %w", ifaceName(pin), err)
	}
	k := &pinned{pin: pin, id: info.ID, program: info.Program}
	if x := info.XDP(); x != nil {
		k.ifindex = int(x.Ifindex)
	}
	if k.ifindex == 0 {
		return k, nil
	}
	dev, err := deviceByIndex(k.ifindex)
	if errors.Is(err, ErrNoInterface) {
		return k, nil
	}
	if err != nil {
		return nil, err
	}
	// An interface of another namespace may have the number of one of ours: ask what runs there.
	if dev.program == k.program || dev.attached == xdpAttachedMulti {
		k.device = dev
	}
	return k, nil
}

// settle brings pins and slots in line with the interfaces: it removes the pins of interfaces that
// are gone, follows those that were renamed, and notes who is attached and how. It attaches nothing.
// It returns what is attached, by the interfaces' names of now.
func (s *Set) settle() (map[string]*pinned, *slots, error) {
	if s.maps == nil {
		return nil, nil, fmt.Errorf("the set: %w", os.ErrClosed)
	}
	names, err := s.pins.linkPins()
	if err != nil {
		return nil, nil, err
	}
	live := make(map[string]*pinned)
	var moved []*pinned
	for _, pin := range names {
		k, err := s.pins.inspect(pin)
		switch {
		case errors.Is(err, fs.ErrNotExist): // removed under our hands
			continue
		case err != nil:
			return nil, nil, err
		case k.ifindex == 0: // a stale pin
			if err := os.Remove(s.pins.link(pin)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, nil, fmt.Errorf("remove a stale pin: %w", err)
			}
			s.release(k.program)
			s.log.Warn("a shield has gone with its interface, or was detached by hand; it comes back with the interface", "interface", ifaceName(pin))
			continue
		case k.device == nil: // taken to another namespace, shield and all
			continue
		}
		live[k.device.name] = k
		if pin != pinName(k.device.name) {
			moved = append(moved, k)
		}
	}
	// Read after the links, and freed before them by DetachInterface: a slot that is freed beside
	// this process does not come back.
	table, err := readSlots(s.maps[bpf.LeveeMapInterfaces])
	if err != nil {
		return nil, nil, err
	}
	if len(moved) > 0 {
		if err := s.follow(moved, table); err != nil {
			return nil, nil, err
		}
	}
	return live, table, s.note(live, table)
}

// follow takes the pins and slots of interfaces that were renamed along. It goes by way of names
// that no interface has, for interfaces may have swapped theirs; if it is killed in between, settle
// finds the pins under those names and goes on.
func (s *Set) follow(moved []*pinned, table *slots) error {
	type move struct {
		*pinned
		old, new string
		slot     int
		mode     Mode
		why      string
	}
	moves := make([]move, len(moved))
	leaving := make(map[int]bool)
	for i, k := range moved {
		m := move{pinned: k, old: ifaceName(k.pin), new: k.device.name}
		if m.slot = table.find(m.old); m.slot < 0 {
			m.slot = table.findIndex(k.ifindex)
		}
		m.mode, m.why = s.modes[m.old], s.why[m.old]
		leaving[m.slot] = true
		moves[i] = m
		if err := os.Rename(s.pins.link(k.pin), s.pins.link(movingPin(i))); err != nil {
			return fmt.Errorf("follow %s to the name %s: %w", m.old, m.new, err)
		}
	}
	for _, m := range moves {
		delete(s.modes, m.old)
		delete(s.why, m.old)
		if m.mode != ModeNone {
			s.wanted[m.old] = m.mode // who is called so next is to be shielded, too
		}
	}
	for i, m := range moves {
		if err := s.moveLink(movingPin(i), pinName(m.new)); err != nil {
			return fmt.Errorf("follow %s to the name %s: %w", m.old, m.new, err)
		}
		// The slot of an interface of that name that is gone makes way.
		if j := table.find(m.new); j >= 0 && !leaving[j] {
			if err := table.write(j, bpf.Interface{}); err != nil {
				return err
			}
		}
		delete(s.wanted, m.new)
		if m.mode != ModeNone {
			s.modes[m.new] = m.mode
		}
		s.why[m.new] = m.why
		s.log.Info("a shielded interface was renamed; its shield goes with it", "from", m.old, "to", m.new)
	}
	for _, m := range moves {
		if m.slot < 0 {
			continue
		}
		e := table.entry[m.slot]
		e.Name = cName(m.new)
		if err := table.write(m.slot, e); err != nil {
			return err
		}
	}
	return nil
}

// moveLink renames a pin. A link that is left under the new name has its interface in another
// namespace, and is detached.
func (s *Set) moveLink(from, to string) error {
	if _, err := s.unlink(to); err != nil {
		return err
	}
	return os.Rename(s.pins.link(from), s.pins.link(to))
}

// note writes to the slots who is attached and how.
func (s *Set) note(live map[string]*pinned, table *slots) error {
	for i, e := range table.entry {
		if e.Ifindex == 0 {
			continue
		}
		e.Mode = uint32(ModeNone)
		if k := live[slotName(e)]; k != nil {
			e.Ifindex, e.Mode = uint32(k.device.index), uint32(k.device.mode())
		}
		if err := table.write(i, e); err != nil {
			return err
		}
	}
	return nil
}

// takeOver gives a slot to each link that has none: those that a set of another schema left.
func (s *Set) takeOver() error {
	live, table, err := s.settle()
	if err != nil {
		return err
	}
	for name, k := range live {
		if table.find(name) >= 0 {
			continue
		}
		if _, _, err := table.claim(name, k.device.index, s.maps[bpf.LeveeMapCounters]); err != nil {
			return fmt.Errorf("take interface %s over: %w", name, err)
		}
	}
	return s.note(live, table)
}
