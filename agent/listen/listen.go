package listen

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Listener is a listener whose port may be had only later.
type Listener struct {
	log    *slog.Logger
	bind   func() (net.Listener, error)
	wanted net.Addr
	closed chan struct{}

	mu    sync.Mutex
	bound net.Listener // nil while another process has the port, or once it is closed
	taken error        // what the system said of that
}

// again is how long after a port was found taken it is asked for again.
const again = time.Second

// TCP listens on an address such as 192.0.2.1:9464. The daemon runs before the network does, and on hosts
// that have a shared address only now and then; so an address that no interface has is taken as well: it is
// answered from the moment that one has it. And any process of the host can take a port while the daemon
// restarts, and must not keep it down with that: such a port is asked for until it is had. The logger, which may
// be nil, says so in both cases. An error is the system's: the address is none, or may not be had.
func TCP(ctx context.Context, address string, logger *slog.Logger) (*Listener, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	config := net.ListenConfig{Control: freely}
	lasting := context.WithoutCancel(ctx)
	l := &Listener{log: logger, closed: make(chan struct{}), bind: func() (net.Listener, error) { return config.Listen(lasting, "tcp", address) }}
	var err error
	switch l.bound, err = l.bind(); {
	case errors.Is(err, unix.EADDRINUSE):
		l.taken = err
		l.wanted, err = net.ResolveTCPAddr("tcp", address)
		logger.Error("another process has this port; it is asked for again each second: see who by `ss -ltnp`", "address", address)
		return l, err
	case err != nil:
		return nil, err
	}
	l.wanted = l.bound.Addr()
	if a, ok := l.wanted.(*net.TCPAddr); ok && !here(a.AddrPort().Addr()) {
		logger.Warn("no interface has this address; who asks there is answered as soon as one has it", "address", address)
	}
	return l, nil
}

// freely lets a socket have an address that is not here yet.
func freely(network, _ string, c syscall.RawConn) error {
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
}

// Accept waits for the port, and then for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		bound, err := l.had()
		if err != nil {
			return nil, err
		}
		if bound != nil {
			return bound.Accept()
		}
		select {
		case <-l.closed:
		case <-time.After(again):
		}
	}
}

// had returns what is bound, after another try if nothing is; nil if another process still has the port.
func (l *Listener) had() (net.Listener, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	if l.bound == nil {
		if l.bound, l.taken = l.bind(); l.taken == nil {
			l.log.Info("the port is free, and had now", "address", l.wanted.String())
		}
	}
	return l.bound, nil
}

// Addr is the address that was asked for, with the port that the system chose if it was to.
func (l *Listener) Addr() net.Addr { return l.wanted }

// Problem says that another process has the port; else it is empty.
func (l *Listener) Problem() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.taken == nil {
		return ""
	}
	return fmt.Sprintf("nothing is served at %s: %v", l.wanted, l.taken)
}

// Close gives the port back, and ends Accept.
func (l *Listener) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.closed:
		return net.ErrClosed
	default:
	}
	close(l.closed)
	if l.bound == nil {
		return nil
	}
	return l.bound.Close()
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
