package loader

import (
	"errors"
	"fmt"
	"net"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoInterface says that there is no interface of that name now.
var ErrNoInterface = errors.New("there is no such interface")

// XDP modes as the kernel tells them (IFLA_XDP_ATTACHED in linux/if_link.h).
const (
	xdpAttachedNative  = 1
	xdpAttachedGeneric = 2
	xdpAttachedOffload = 3
	xdpAttachedMulti   = 4
)

// device is what netlink says of an interface.
type device struct {
	name     string
	index    int
	mtu      int
	kind     string // "device", "veth", "vlan", …
	loopback bool
	up       bool
	master   int    // index of the bridge or bond that it belongs to, or 0
	attached uint32 // 0: no XDP program, else one of xdpAttached…
	program  ebpf.ProgramID
}

func (d *device) mode() Mode {
	switch d.attached {
	case 0:
		return ModeNone
	case xdpAttachedGeneric:
		return ModeGeneric
	}
	return ModeNative
}

func deviceByName(name string) (*device, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return nil, deviceError(name, err)
	}
	d := newDevice(l)
	if d.name != name {
		return nil, fmt.Errorf("interface %s: that is another name of %s; call it so", name, d.name)
	}
	return d, nil
}

func deviceByIndex(index int) (*device, error) {
	l, err := netlink.LinkByIndex(index)
	if err != nil {
		return nil, deviceError(fmt.Sprintf("number %d", index), err)
	}
	return newDevice(l), nil
}

func deviceError(who string, err error) error {
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) || errors.Is(err, unix.ENODEV) {
		err = ErrNoInterface
	}
	return fmt.Errorf("interface %s: %w", who, err)
}

func newDevice(l netlink.Link) *device {
	a := l.Attrs()
	d := &device{
		name:     a.Name,
		index:    a.Index,
		mtu:      a.MTU,
		kind:     l.Type(),
		loopback: a.Flags&net.FlagLoopback != 0,
		up:       a.Flags&net.FlagUp != 0,
		master:   a.MasterIndex,
	}
	if a.Xdp != nil && a.Xdp.Attached {
		d.attached = a.Xdp.AttachMode
		d.program = ebpf.ProgramID(a.Xdp.ProgId)
	}
	return d
}
