package listen

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestTCP(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0", "192.0.2.1:0", "[2001:db8::1]:0"} {
		var said bytes.Buffer
		l, err := TCP(t.Context(), address, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Errorf("%s: %v", address, err)
			continue
		}
		if told, want := strings.Contains(said.String(), address), strings.Contains(address, "192.0.2") || strings.Contains(address, "db8"); told != want {
			t.Errorf("%s: a word about it: %v, want %v: %s", address, told, want, said.String())
		}
		if p := l.Problem(); p != "" {
			t.Errorf("%s: %s", address, p)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if l, err := TCP(t.Context(), "192.0.2.1", nil); err == nil {
		t.Error("an address without a port was taken")
		l.Close()
	}
}

// A port that another process has is asked for until it is free.
func TestTaken(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		other, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		address := other.Addr().String()
		var said bytes.Buffer
		l, err := TCP(t.Context(), address, slog.New(slog.NewTextHandler(&said, nil)))
		if err != nil {
			t.Fatal(err)
		}
		if p := l.Problem(); !strings.Contains(p, address) || !strings.Contains(p, "in use") {
			t.Errorf("its problem is %q", p)
		}
		if !strings.Contains(said.String(), "level=ERROR") || !strings.Contains(said.String(), address) {
			t.Errorf("what it says: %s", said.String())
		}
		if l.Addr().String() != address {
			t.Errorf("its address is %s, want %s", l.Addr(), address)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		accepted := make(chan error, 1)
		go func() {
			c, err := l.Accept()
			if err == nil {
				err = c.Close()
			}
			accepted <- err
		}()
		for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatal(err)
			}
		}
		if err := <-accepted; err != nil {
			t.Error(err)
		}
		if p := l.Problem(); p != "" {
			t.Errorf("it is had, and its problem is %q", p)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Who closes a listener that waits for its port ends the waiting, and it never takes the port.
func TestCloseWaiting(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := TCP(t.Context(), other.Addr().String(), nil)
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := <-accepted; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept: %v", err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept again: %v", err)
	}
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Close again: %v", err)
	}
	free, err := net.Listen("tcp", other.Addr().String())
	if err != nil {
		t.Fatalf("it has the port: %v", err)
	}
	free.Close()
}

// An address that comes later is answered then, though the socket was there before.
func TestLater(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for a network namespace of its own")
	}
	runtime.LockOSThread() // and never unlocked: the thread ends with the test, and the namespace with it
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	for _, prefix := range []string{"192.0.2.1/32", "2001:db8::1/128"} {
		addr, err := netlink.ParseAddr(prefix)
		if err != nil {
			t.Fatal(err)
		}
		l, err := TCP(t.Context(), net.JoinHostPort(addr.IP.String(), "9464"), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := netlink.AddrAdd(lo, addr); err != nil {
			t.Fatal(err)
		}
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = io.WriteString(c, "here")
				c.Close()
			}
		}()
		// A dialer would take threads of its own, which are not in the namespace.
		if text, err := ask(addr.IP); err != nil || text != "here" {
			t.Errorf("%s: %q, %v", prefix, text, err)
		}
	}
}

// ask connects from this thread's namespace, and reads what comes.
func ask(ip net.IP) (string, error) {
	family, to := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: 9464})
	if v4 := ip.To4(); v4 != nil {
		copy(to.(*unix.SockaddrInet4).Addr[:], v4)
	} else {
		six := &unix.SockaddrInet6{Port: 9464}
		copy(six.Addr[:], ip)
		family, to = unix.AF_INET6, six
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return "", err
	}
	if err := unix.Connect(fd, to); err != nil {
		return "", err
	}
	b := make([]byte, 16)
	n, err := unix.Read(fd, b)
	return string(b[:max(n, 0)]), err
}
