package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// Mode is how a program sits on an interface.
type Mode uint32

// The modes. The numbers of ModeNative and ModeGeneric are those of the table of interfaces.
const (
	ModeNone    Mode = 0 // nothing is attached
	ModeNative  Mode = 1 // in the driver, before the kernel spends an skb
	ModeGeneric Mode = 2 // in the stack, on every interface, slower
	ModeAuto    Mode = 3 // a wish: native if the driver takes it, generic otherwise
)

// String returns the mode's name in configuration, commands and metrics.
func (m Mode) String() string {
	switch m {
	case ModeNone:
		return "none"
	case ModeNative:
		return "native"
	case ModeGeneric:
		return "generic"
	case ModeAuto:
		return "auto"
	}
	return fmt.Sprintf("mode_%d", uint32(m))
}

// ParseMode reads the name of a mode that Attach takes: auto, native or generic.
func ParseMode(s string) (Mode, error) {
	for _, m := range []Mode{ModeAuto, ModeNative, ModeGeneric} {
		if s == m.String() {
			return m, nil
		}
	}
	return ModeNone, fmt.Errorf("mode %q: not one of auto, native, generic", s)
}

// Attachment is one interface that the set shields, or is to shield.
type Attachment struct {
	Name       string
	Ifindex    int            // 0 while nothing is attached
	Slot       uint32         // in the table of interfaces and the counters
	Mode       Mode           // ModeNone while nothing is attached
	Why        string         // why it is not attached, or not native; empty if all is well
	LinkID     link.ID        // 0 while nothing is attached
	ProgramID  ebpf.ProgramID // 0 while nothing is attached
	ProgramTag string         // the kernel's digest of the program's instructions
}

// ErrNotAttached says that the set does not shield an interface of that name.
var ErrNotAttached = errors.New("levee is not attached to it")

// ModeError says that an interface has a program of ours in another mode than asked for. To change
// the mode takes a moment without a shield, so it is left to the caller to detach first.
type ModeError struct {
	Name       string
	Have, Want Mode
}

// Error says what to do.
func (e *ModeError) Error() string {
	return fmt.Sprintf("attach %s: it is attached in %s mode; detach it first to attach it in %s mode", e.Name, e.Have, e.Want)
}

// Attach shields an interface: ModeAuto tries native and then generic mode, and Attachment.Why tells
// why native was refused. An interface that is shielded already stays as it is; Upgrade changes its
// program.
//
// It returns ErrNoInterface if there is none of that name, a *ForeignError if somebody else's program
// sits there, which is never replaced, a *ModeError if our own does in another mode, and
// ErrTooManyInterfaces.
func (s *Set) Attach(name string, mode Mode) (Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.attach(name, mode); err != nil {
		return Attachment{}, err
	}
	all, err := s.attachments()
	if err != nil {
		return Attachment{}, err
	}
	for _, a := range all {
		if a.Name == name {
			return a, nil
		}
	}
	return Attachment{}, fmt.Errorf("attach %s: %w", name, ErrNoInterface) // it went at this moment
}

// Want makes Watch attach an interface as soon as there is one of that name. An interface that has
// been attached before is wanted without it.
func (s *Set) Want(name string, mode Mode) error {
	if err := checkName(name); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted[name] = mode
	return nil
}

func (s *Set) attach(name string, mode Mode) error {
	if err := checkName(name); err != nil {
		return err
	}
	live, table, err := s.settle()
	if err != nil {
		return err
	}
	if have := live[name]; have != nil {
		if mode != ModeAuto && mode != have.device.mode() {
			return &ModeError{Name: name, Have: have.device.mode(), Want: mode}
		}
		s.modes[name] = mode
		delete(s.wanted, name)
		return nil
	}
	dev, err := deviceByName(name)
	if err != nil {
		return fmt.Errorf("attach %w", err)
	}
	if dev.attached != 0 {
		return foreign(dev)
	}
	// A link that is left of that name holds an interface in another namespace.
	if _, err := s.unlink(pinName(name)); err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	slot, fresh, err := table.claim(name, dev.index, s.maps[bpf.LeveeMapCounters])
	if err != nil {
		return fmt.Errorf("attach %s: %w", name, err)
	}
	why, err := s.link(dev, slot, mode)
	if err != nil {
		if fresh {
			_, freeErr := table.free(name)
			err = errors.Join(err, freeErr)
		}
		return err
	}
	s.why[name] = why
	s.modes[name] = mode
	delete(s.wanted, name)
	delete(s.retries, name)
	_, _, err = s.settle() // notes the mode it got
	return err
}

// link loads the program of a slot, attaches it and pins the link.
func (s *Set) link(dev *device, slot int, mode Mode) (why string, err error) {
	spec, err := s.specialise(slot, dev.loopback)
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", dev.name, err)
	}
	prog, err := s.load(spec)
	if err != nil {
		return "", fmt.Errorf("attach %s: %w", dev.name, err)
	}
	defer prog.Close()
	defer func() {
		if err != nil {
			err = errors.Join(err, s.pins.unpin(prog))
		}
	}()

	var l link.Link
	switch mode {
	case ModeNative, ModeGeneric:
		l, err = attachXDP(dev, prog, mode)
		if err != nil && mode == ModeNative {
			why = refusal(dev, err, s.frags)
		}
	case ModeAuto:
		l, err = attachXDP(dev, prog, ModeNative)
		if refusesNative(err) {
			why = refusal(dev, err, s.frags)
			l, err = attachXDP(dev, prog, ModeGeneric)
		}
	default:
		return "", fmt.Errorf("attach %s: mode %s can't be asked for", dev.name, mode)
	}
	if err != nil {
		return "", attachError(dev, mode, why, err)
	}
	defer l.Close() // once it is pinned, the pin holds it
	if err := l.Pin(s.pins.link(pinName(dev.name))); err != nil {
		return "", fmt.Errorf("attach %s: pin the link: %w", dev.name, err)
	}
	return why, nil
}

func attachXDP(dev *device, prog *ebpf.Program, mode Mode) (link.Link, error) {
	flags := link.XDPDriverMode
	if mode == ModeGeneric {
		flags = link.XDPGenericMode
	}
	return link.AttachXDP(link.XDPOptions{Program: prog, Interface: dev.index, Flags: flags})
}

// refusesNative says whether an error means that the driver does not take the program, and not that
// the place is taken, the interface gone or the caller not allowed.
func refusesNative(err error) bool {
	return err != nil && !taken(err) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EPERM)
}

func taken(err error) bool { return errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) }

func attachError(dev *device, mode Mode, why string, err error) error {
	if taken(err) {
		if now, devErr := deviceByIndex(dev.index); devErr == nil {
			dev = now
		}
		return foreign(dev)
	}
	if errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("attach interface %s: %w", dev.name, ErrNoInterface)
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		err = errno // the library's words add nothing
	}
	if why != "" {
		return fmt.Errorf("attach %s in %s mode: %s: %w", dev.name, mode, why, err)
	}
	return fmt.Errorf("attach %s in %s mode: %w", dev.name, mode, err)
}

// virtual interfaces have no driver of their own that could run a program.
var virtual = map[string]string{
	"vlan":    "a VLAN has no native mode; its parent may have",
	"macvlan": "a macvlan has no native mode; its parent may have",
	"ipvlan":  "an ipvlan has no native mode; its parent may have",
	"bridge":  "a bridge has no native mode; its ports may have",
	"dummy":   "a dummy interface has no native mode",
}

// refusal says in words why a driver did not take the program. The kernel tells no more than a
// number through a link; the driver's own words go to its tracepoint xdp:bpf_xdp_link_attach_failed.
func refusal(dev *device, err error, frags bool) string {
	words, known := virtual[dev.kind]
	switch {
	case known:
	case dev.loopback:
		words = "the loopback interface has no native mode"
	case errors.Is(err, unix.ERANGE), errors.Is(err, unix.EINVAL) && dev.mtu > 1500 && !frags:
		words = fmt.Sprintf("the MTU (%d, or the peer's) is too large for the driver's native mode", dev.mtu)
		if !frags {
			words += " without packets of several buffers, which need kernel 5.18"
		}
	case errors.Is(err, unix.EOPNOTSUPP):
		words = "the driver has no native mode, or not with its present settings (LRO, queues, MTU)"
	case errors.Is(err, unix.EINVAL):
		words = "the driver does not take it with its present settings (queues, offloads, MTU)"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		words = "the driver has too few queues or too little memory for native mode"
	default:
		words = "the driver refused native mode"
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		name := unix.ErrnoName(errno)
		if errno == unix.EOPNOTSUPP {
			name = "EOPNOTSUPP" // not ENOTSUP, its twin: people search for what the kernel's source says
		}
		words += " (" + name + ")"
	}
	return words
}

// Attachments returns every interface that the set shields or that waits to return, by slot.
func (s *Set) Attachments() ([]Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attachments()
}

func (s *Set) attachments() ([]Attachment, error) {
	live, table, err := s.settle()
	if err != nil {
		return nil, err
	}
	var all []Attachment
	for i, e := range table.entry {
		if e.Ifindex == 0 {
			continue
		}
		a := Attachment{Name: slotName(e), Slot: uint32(i)}
		why, known := s.why[a.Name]
		a.Why = why
		if l := live[a.Name]; l != nil {
			a.Ifindex, a.Mode, a.LinkID, a.ProgramID = l.device.index, l.device.mode(), l.id, l.program
			if a.Mode == ModeGeneric && !known {
				a.Why = "it was attached so before this process started"
			}
			if a.ProgramTag, err = s.pins.programTag(l.program); err != nil {
				return nil, err
			}
		} else if a.Why == "" {
			a.Why = WhyNot(a.Name)
		}
		all = append(all, a)
	}
	return all, nil
}

// WhyNot says why an interface is not shielded, where nothing better is known of it.
func WhyNot(name string) string {
	if _, err := deviceByName(name); err != nil {
		return ErrNoInterface.Error()
	}
	return "it is there, but not shielded; if that stays so it was detached without the daemon, and levee attach " + name + " shields it again"
}

// programTag returns the kernel's digest of a program; nothing if this process may not look at it.
func (p pins) programTag(id ebpf.ProgramID) (string, error) {
	prog, err := p.openProgram(id)
	if notAllowed(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return "", fmt.Errorf("inspect program %d: %w", id, err)
	}
	return info.Tag, nil
}

// Detach takes the shield off an interface and forgets it. It returns ErrNotAttached if the set does
// not shield an interface of that name.
func (s *Set) Detach(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, table, err := s.settle()
	if err != nil {
		return err
	}
	_, known := s.wanted[name]
	for _, m := range []map[string]Mode{s.wanted, s.modes} {
		delete(m, name)
	}
	delete(s.why, name)
	delete(s.retries, name)

	unlinked, err := s.unlink(pinName(name))
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	freed, err := table.free(name)
	if err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	if !known && !unlinked && !freed {
		return fmt.Errorf("detach %s: %w", name, ErrNotAttached)
	}
	return nil
}

// unlink is that of the pins, and lets go of the program. Where that fails, Watch tries it again: the
// interface is detached.
func (s *Set) unlink(pin string) (bool, error) {
	program, found, err := s.pins.unlink(pin)
	s.release(program)
	return found, err
}

// release lets go of a program that no link runs any more, now or later.
func (s *Set) release(program ebpf.ProgramID) {
	if err := s.pins.unpinProgram(program); err != nil {
		s.litters(err)
	}
}

// unlink detaches a pinned link and removes its pin; another process that holds the link open does
// not keep it attached. It returns the program that the link ran, whose pins are left; 0 if there is no
// such link, or one that is still attached.
func (p pins) unlink(pin string) (program ebpf.ProgramID, found bool, err error) {
	path := p.link(pin)
	l, err := link.LoadPinnedLink(path, nil)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	defer l.Close()
	info, err := l.Info()
	if err != nil {
		return 0, false, err
	}
	if err := l.Detach(); err != nil {
		return 0, false, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // a daemon may have seen it, too
		return info.Program, true, err
	}
	return info.Program, true, nil
}
