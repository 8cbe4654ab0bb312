package loader

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// gapDetector sends martians without pause and listens behind XDP on the interface: what it hears
// met no shield.
type gapDetector struct {
	l        *lab
	listener int
	quit     chan struct{}
	sent     chan int
}

func (l *lab) detectGaps(name string) *gapDetector {
	l.Helper()
	dev, err := netlink.LinkByName(name)
	must(l, err)
	peer, err := netlink.LinkByName(name + "p")
	must(l, err)
	const ipv4 = unix.ETH_P_IP>>8 | unix.ETH_P_IP&0xFF<<8
	g := &gapDetector{l: l, quit: make(chan struct{}), sent: make(chan int)}
	g.listener, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(l, err)
	must(l, unix.Bind(g.listener, &unix.SockaddrLinklayer{Ifindex: dev.Attrs().Index, Protocol: ipv4}))
	sender, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(l, err)
	go func() {
		defer unix.Close(sender)
		to := &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index, Halen: 6}
		b := frame(martian)
		for n := 0; ; n++ {
			select {
			case <-g.quit:
				g.sent <- n
				return
			case <-time.After(100 * time.Microsecond):
			}
			// ENOBUFS: the queue is full; the next one is as good.
			if err := unix.Sendto(sender, b, 0, to); err != nil && !errors.Is(err, unix.ENOBUFS) {
				l.Errorf("send: %v", err)
			}
		}
	}()
	return g
}

// stop says how many frames were sent and how many met no shield.
func (g *gapDetector) stop() (sent, passed int) {
	close(g.quit)
	sent = <-g.sent
	defer unix.Close(g.listener)
	for b := make([]byte, 2048); ; {
		n, from, err := unix.Recvfrom(g.listener, b, 0)
		if err != nil {
			return sent, passed
		}
		link, ok := from.(*unix.SockaddrLinklayer)
		if ok && link.Pkttype != unix.PACKET_OUTGOING && n >= 20 && b[12] == 127 {
			passed++
		}
	}
}

// TestKilledChild is the process that TestKilledAtAnyTime kills: it restarts, changes its sizes and
// its features, upgrades and attaches, over and over.
func TestKilledChild(t *testing.T) {
	root := os.Getenv("LEVEE_TEST_ROOT")
	if root == "" {
		return // only a part of TestKilledAtAnyTime
	}
	for i := 0; ; i++ {
		c := Config{Root: root, Lock: os.Getenv("LEVEE_TEST_LOCK"), Sizes: smallSizes, Features: quick}
		c.Features.Events = i%2 == 0
		if i%3 == 0 {
			c.Sizes.Ban4Entries *= 2
		}
		s, err := Open(c)
		must(t, err)
		_, err = s.Upgrade()
		must(t, err)
		for _, name := range []string{"net0", "net1"} {
			_, err = s.Attach(name, ModeAuto)
			must(t, err)
		}
		fmt.Println("\nattached")
		must(t, s.Detach("net1"))
		must(t, s.Close())
	}
}

// Whenever the daemon is killed, the shield stays without a gap, and the next daemon goes on.
func TestKilledAtAnyTime(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	var gaps *gapDetector
	for range 10 {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), "LEVEE_TEST_ROOT="+l.root, "LEVEE_TEST_LOCK="+l.lock)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		attached := false
		for lines := bufio.NewScanner(out); !attached && lines.Scan(); {
			attached = lines.Text() == "attached"
			if !attached && lines.Text() != "" {
				t.Log(lines.Text())
			}
		}
		if gaps == nil {
			gaps = l.detectGaps("net0")
		}
		time.Sleep(rand.N(200 * time.Millisecond)) // the time of death, not a wait
		must(t, cmd.Process.Kill())
		if err := cmd.Wait(); cmd.ProcessState.Success() || !attached {
			t.Fatalf("the child ended by itself: %v", err)
		}
		if id, mode := l.program("net0"); id == 0 || mode != ModeNative {
			t.Fatalf("after a kill: program %d in %s mode; pins %v", id, mode, l.tree())
		}
	}
	s := l.open()
	_, err := s.Upgrade()
	must(t, err)
	a := l.attach(s, "net0", ModeAuto)
	if sent, passed := gaps.stop(); passed != 0 || sent < 100 {
		t.Errorf("%d of %d frames met no shield", passed, sent)
	}
	l.wantShield("net0", a.Slot)
	if dirs, err := rootPins(l.root).sets(); err != nil || len(dirs) != 1 {
		t.Errorf("sets %v, %v", dirs, err)
	}
}

// The detector does hear what passes.
func TestGapDetector(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	gaps := l.detectGaps("net0")
	l.eventually("there is traffic to find", func() bool {
		dev, err := netlink.LinkByName("net0")
		must(t, err)
		return dev.Attrs().Statistics.RxPackets >= 10
	})
	if sent, passed := gaps.stop(); passed == 0 {
		t.Errorf("heard none of %d frames", sent)
	}
}
