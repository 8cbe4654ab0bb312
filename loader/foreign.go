package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ForeignError says that somebody else's program sits on an interface. Levee never replaces it.
type ForeignError struct {
	Name      string         // of the interface
	Mode      Mode           // of the program that is there
	ProgramID ebpf.ProgramID // 0 if the kernel does not tell, as with programs offloaded beside others
	Program   string         // its name; empty if it has none
	Tag       string         // its digest
	LinkID    link.ID        // of the link that holds it; 0 if it was attached without one, as `ip link` does
	Hidden    bool           // this process may not look at programs of others: name, tag and link are unknown
}

// Error names the program and says how it can be removed.
func (e *ForeignError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "attach %s: program %d", e.Name, e.ProgramID)
	if e.Program != "" {
		fmt.Fprintf(&b, " %q", e.Program)
	}
	if e.Tag != "" {
		fmt.Fprintf(&b, " (tag %s)", e.Tag)
	}
	fmt.Fprintf(&b, " is attached there in %s mode and is not Levee's; stop its owner, or remove it with: ", e.Mode)
	switch {
	case e.Hidden:
		fmt.Fprintf(&b, "ip link set dev %s xdp off; if that is refused, `bpftool link` names the link that holds it, for: bpftool link detach id", e.Name)
	case e.LinkID != 0:
		fmt.Fprintf(&b, "bpftool link detach id %d", e.LinkID)
	case e.Mode == ModeGeneric:
		fmt.Fprintf(&b, "ip link set dev %s xdpgeneric off", e.Name)
	default:
		fmt.Fprintf(&b, "ip link set dev %s xdp off", e.Name)
	}
	return b.String()
}

// foreign describes the program on an interface, as far as the kernel tells.
func foreign(dev *device) error {
	e := &ForeignError{Name: dev.name, Mode: dev.mode(), ProgramID: dev.program}
	if e.ProgramID == 0 {
		return e
	}
	prog, err := ebpf.NewProgramFromID(e.ProgramID)
	if errors.Is(err, fs.ErrNotExist) {
		return e
	}
	if notAllowed(err) {
		e.Hidden = true
		return e
	}
	if err != nil {
		return errors.Join(e, fmt.Errorf("open program %d: %w", e.ProgramID, err))
	}
	defer prog.Close()
	if info, err := prog.Info(); err == nil {
		e.Program, e.Tag = info.Name, info.Tag
	}
	e.LinkID = holder(dev)
	return e
}

// holder returns the link that holds the program of an interface, or 0.
func holder(dev *device) link.ID {
	var links link.Iterator
	defer links.Close()
	for links.Next() {
		info, err := links.Link.Info()
		if err != nil || info.Type != link.XDPType || info.Program != dev.program {
			continue
		}
		if x := info.XDP(); x != nil && int(x.Ifindex) == dev.index {
			return links.ID
		}
	}
	return 0
}
