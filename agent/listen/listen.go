package listen

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// TCP listens on an address such as 192.0.2.1:9464. The daemon runs before the network does, and on hosts
// that have a shared address only now and then; so an address that no interface has is taken as well: it is
// answered from the moment that one has it. The logger, which may be nil, then says so, for it may be a slip. An
// error is the system's: the port is taken, or the address is none.
func TCP(ctx context.Context, address string, logger *slog.Logger) (net.Listener, error) {
	config := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		level, option := unix.SOL_IP, unix.IP_FREEBIND
		if network == "tcp6" {
			level, option = unix.SOL_IPV6, unix.IPV6_FREEBIND
		}
		var failed error
		if err := c.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), level, option, 1) }); err != nil {
			return err
		}
		if failed != nil {
			return fmt.Errorf("allow an address that is not here yet: %w", failed)
		}
		return nil
	}}
	l, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && logger != nil && !here(a.AddrPort().Addr()) {
		logger.Warn("no interface has this address; who asks there is answered as soon as one has it", "address", address)
	}
	return l, nil
}

// here tells whether an interface has an address. What can't be found out is taken to be here.
func here(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if addr.IsUnspecified() || addr.IsLoopback() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return true
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == addr {
			return true
		}
	}
	return false
}
