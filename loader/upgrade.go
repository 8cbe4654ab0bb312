package loader

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// ErrNotReplaced says that the tables before are still those that are asked: nothing that is written to these
// is enforced.
var ErrNotReplaced = errors.New("the tables could not be replaced")

// Upgrade moves every interface to the program that this set would load, on the maps of this set,
// where it runs another: an older program, other features, a set that was replaced. It does so by a
// link update, so that each packet meets either the old or the new program. It returns the
// interfaces that it changed; calling it again is free.
//
// Every new program passes the verifier before the first interface changes: if one does not, all
// stays as it was. Sets that are no longer in use are removed at the end.
func (s *Set) Upgrade() ([]Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	live, table, err := s.settle()
	if err != nil {
		return nil, err
	}
	changes, err := s.changes(live, table)
	defer closeChanges(changes)
	if err == nil {
		err = s.replace(changes)
	}
	if err != nil {
		if s.pending {
			err = fmt.Errorf("%w: %w", ErrNotReplaced, err)
		}
		return nil, errors.Join(err, s.pins.prunePrograms())
	}
	s.tidy()

	all, err := s.attachments()
	if err != nil {
		return nil, err
	}
	var changed []Attachment
	for _, a := range all {
		for _, c := range changes {
			if c.name == a.Name {
				changed = append(changed, a)
			}
		}
	}
	return changed, nil
}

// tidy removes what is no longer used.
func (s *Set) tidy() {
	s.litter = false
	if err := errors.Join(s.pins.prune(), s.pins.prunePrograms()); err != nil {
		s.litters(err)
	}
}

// litters notes that something could not be removed, which Watch then tries again: the shield is none the
// worse for it.
func (s *Set) litters(err error) {
	s.litter = true
	s.log.Warn("what is no longer used could not all be removed; that is tried again", "error", err)
}

// replace is the critical section: between its first and its last step the pinned set and the
// programs may belong to different sets. If the process dies there, the next Upgrade goes on.
func (s *Set) replace(changes []*change) error {
	if s.pending {
		if err := s.carryPanic(); err != nil {
			return err
		}
		if err := s.pins.swap(); err != nil {
			return err
		}
		s.pending = false
	}
	var errs []error
	for _, c := range changes {
		if err := s.update(c); err != nil {
			errs = append(errs, fmt.Errorf("upgrade %s: %w", c.name, err))
		}
	}
	return errors.Join(errs...)
}

// change is an interface that is to get another program.
type change struct {
	name string
	spec *ebpf.CollectionSpec
	prog *ebpf.Program
	link link.Link
}

func closeChanges(changes []*change) {
	for _, c := range changes {
		c.link.Close()
		if c.prog != nil {
			c.prog.Close()
		}
	}
}

// changes loads a new program for every interface that needs one.
func (s *Set) changes(live map[string]*pinned, table *slots) (changes []*change, err error) {
	for name, k := range live {
		slot := table.find(name)
		if slot < 0 {
			continue // it is being detached beside this process
		}
		spec, err := s.specialise(slot, k.device.loopback)
		if err != nil {
			return changes, fmt.Errorf("upgrade %s: %w", name, err)
		}
		same, err := s.runs(k.program, spec)
		if err != nil {
			return changes, fmt.Errorf("upgrade %s: %w", name, err)
		}
		if same {
			continue
		}
		l, err := link.LoadPinnedLink(s.pins.link(pinName(name)), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return changes, fmt.Errorf("upgrade %s: %w", name, err)
		}
		c := &change{name: name, spec: spec, link: l}
		changes = append(changes, c)
		if c.prog, err = s.load(spec); err != nil {
			return changes, fmt.Errorf("upgrade %s: %w", name, err)
		}
	}
	return changes, nil
}

// update swaps the program under a link.
func (s *Set) update(c *change) error {
	err := c.link.Update(c.prog)
	switch {
	case errors.Is(err, unix.ENOLINK):
		return nil // its interface went at this moment; settle removes the pin
	case !errors.Is(err, unix.EINVAL):
		return err
	}
	// The kernel wants the new program's expected attach type to be the old one's. Loaders that did
	// not set it left 0 (https://github.com/cilium/cilium/issues/44063).
	c.spec.Programs[bpf.LeveeProgLevee].AttachType = ebpf.AttachNone
	prog, loadErr := s.load(c.spec)
	if loadErr != nil {
		return errors.Join(err, loadErr)
	}
	defer prog.Close()
	return c.link.Update(prog)
}

// carryPanic hands the panic switch of the pinned set on to the one that replaces it, should it have
// been thrown since.
func (s *Set) carryPanic() error {
	on, err := panicOf(s.before)
	if err != nil || !on {
		return err
	}
	return throwPanic(s.maps[bpf.LeveeMapControls], on)
}
