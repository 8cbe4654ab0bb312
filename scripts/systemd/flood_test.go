package systemd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// flood sends UDP from one source without pause, from the far end of a veth pair to its near end, and
// listens behind XDP there: what it hears met no shield.
type flood struct {
	t        *testing.T
	listener int
	source   netip.Addr
	quit     chan struct{}
	done     chan struct{}
	sent     atomic.Int64
	ended    sync.Once
}

// floodLimit ends a flood whose test forgets it.
const floodLimit = 2 * time.Minute

// startFlood floods the interface near, by its other end far, in the network namespace of a process.
func startFlood(t *testing.T, pid int, near, far, source string) *flood {
	t.Helper()
	f := &flood{t: t, source: netip.MustParseAddr(source), quit: make(chan struct{}), done: make(chan struct{})}
	sender, index := 0, 0
	inside(t, pid, func() {
		to, err := netlink.LinkByName(near)
		check(t, err)
		from, err := netlink.LinkByName(far)
		check(t, err)
		if from.Type() != "veth" {
			t.Fatalf("%s is no veth: nothing is flooded but what the test has made", far)
		}
		const ipv4 = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xFF<<8
		f.listener, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		check(t, err)
		check(t, unix.Bind(f.listener, &unix.SockaddrLinklayer{Ifindex: to.Attrs().Index, Protocol: ipv4}))
		sender, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		check(t, err)
		index = from.Attrs().Index
	})
	go f.send(sender, index, frame(t, f.source))
	return f
}

func (f *flood) send(socket, index int, b []byte) {
	defer close(f.done)
	defer unix.Close(socket)
	to := &unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
	end := time.After(floodLimit)
	for {
		select {
		case <-f.quit:
			return
		case <-end:
			return
		case <-time.After(200 * time.Microsecond): // the machine has others to serve
		}
		for range 16 {
			// ENOBUFS: the queue is full; the next one is as good. ENXIO, ENETDOWN: the interface went.
			switch err := unix.Sendto(socket, b, 0, to); {
			case err == nil:
				f.sent.Add(1)
			case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENETDOWN), errors.Is(err, unix.ENODEV):
				return
			}
		}
	}
}

// heard says how many packets met no shield since it was last asked.
func (f *flood) heard() (passed int) {
	for b := make([]byte, 2048); ; {
		n, from, err := unix.Recvfrom(f.listener, b, 0)
		if err != nil {
			return passed
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if ok && link.Pkttype != unix.PACKET_OUTGOING && n >= 20 && [4]byte(b[12:16]) == f.source.As4() {
			passed++
		}
	}
}

// wait returns when n packets more have been sent.
func (f *flood) wait(n int64) {
	f.t.Helper()
	until := f.sent.Load() + n
	for deadline := time.Now().Add(30 * time.Second); f.sent.Load() < until; {
		if time.Now().After(deadline) {
			f.t.Fatalf("the flood sends nothing: %d of %d", f.sent.Load(), until)
		}
		time.Sleep(time.Millisecond)
	}
}

// wantDropped waits for packets to be sent, and wants none of them to pass.
func (f *flood) wantDropped(what string) {
	f.t.Helper()
	f.wait(1000)
	if n := f.heard(); n > 0 {
		f.t.Errorf("%s: %d packets of a banned source passed", what, n)
	}
}

// wantPassing waits for packets to be sent, and wants some to pass.
func (f *flood) wantPassing(what string) {
	f.t.Helper()
	f.heard()
	f.wait(1000)
	if f.heard() == 0 {
		f.t.Errorf("%s: nothing passed", what)
	}
}

// stop ends the flood; one that has ended stays so.
func (f *flood) stop() {
	f.ended.Do(func() {
		close(f.quit)
		<-f.done
		unix.Close(f.listener)
	})
}

// inside runs something on a thread in a process's network namespace.
func inside(t *testing.T, pid int, do func()) {
	t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	check(t, err)
	defer home.Close()
	there, err := netns.GetFromPid(pid)
	check(t, err)
	defer there.Close()
	check(t, netns.Set(there))
	defer func() {
		if err := netns.Set(home); err != nil {
			panic(fmt.Sprintf("the way back is lost: %v", err)) // the thread must not serve others
		}
		runtime.UnlockOSThread()
	}()
	do()
}

func frame(t *testing.T, source netip.Addr) []byte {
	t.Helper()
	eth := &layers.Ethernet{SrcMAC: net.HardwareAddr{2, 0, 0, 0, 0, 2}, DstMAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: source.AsSlice(), DstIP: net.IP{192, 0, 2, 1}}
	udp := &layers.UDP{SrcPort: 4000, DstPort: 9}
	check(t, udp.SetNetworkLayerForChecksum(ip))
	b := gopacket.NewSerializeBuffer()
	check(t, gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, eth, ip, udp, gopacket.Payload("flood")))
	return b.Bytes()
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
