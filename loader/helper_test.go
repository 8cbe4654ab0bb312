package loader

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/levee-xdp/levee/bpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What keeps a set cheap: small tables, and a program that the verifier is soon done with.
var (
	smallSizes = bpf.Sizes{Ban4Entries: 1 << 10, Ban6Entries: 1 << 10, Sources: 1 << 10, Allows: 1 << 4}
	quick      = bpf.Features{Sanity: true, Martians: true}
)

var testNumber atomic.Int64

// lab is a test's own network namespace and its own folder on the bpf filesystem.
type lab struct {
	*testing.T
	root string
	lock string
	ns   netns.NsHandle
}

// newLab moves the test's thread into a new network namespace. The thread ends with the test.
func newLab(t *testing.T) *lab {
	t.Helper()
	needsRoot(t)
	runtime.LockOSThread() // and never unlocks: the runtime ends the thread, and the namespace with it
	ns, err := netns.New()
	must(t, err)
	l := &lab{
		T:    t,
		root: fmt.Sprintf("/sys/fs/bpf/levee-test-%d-%d", os.Getpid(), testNumber.Add(1)),
		lock: filepath.Join(t.TempDir(), "lock"),
		ns:   ns,
	}
	t.Cleanup(func() {
		if _, err := Remove(l.root); err != nil {
			t.Errorf("remove: %v", err)
		}
		if exists(l.root) {
			t.Errorf("%s was left behind", l.root)
			os.RemoveAll(l.root)
		}
		ns.Close()
	})
	return l
}

// lacks ends a test for want of a tool. Where scripts/setup has run it is there; a virtual machine of make
// test-kernels has none but the tests.
func lacks(t *testing.T, tool string) {
	t.Helper()
	if os.Getenv("LEVEE_SETUP") != "" {
		t.Fatalf("scripts/setup has run, and there is no %s", tool)
	}
	t.Skipf("there is no %s here", tool)
}

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) config() Config {
	return Config{Root: l.root, Lock: l.lock, Sizes: smallSizes, Features: quick, Log: slog.New(slog.NewTextHandler(testLog{l}, nil))}
}

type testLog struct{ testing.TB }

func (t testLog) Write(b []byte) (int, error) {
	t.Logf("%s", bytes.TrimSpace(b))
	return len(b), nil
}

// open opens a set that is closed when the test ends, if it was not closed before.
func (l *lab) open() *Set {
	l.Helper()
	return l.openWith(l.config())
}

func (l *lab) openWith(c Config) *Set {
	l.Helper()
	s, err := Open(c)
	must(l, err)
	l.Cleanup(func() { s.Close() })
	return s
}

// veth makes a pair: name, which is to be shielded, and name with a "p" behind, which sends.
func (l *lab) veth(name string, mtu int) {
	l.Helper()
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: mtu, HardwareAddr: shieldedMAC[:]},
		PeerName:  name + "p", PeerMTU: uint32(mtu),
	}
	must(l, netlink.LinkAdd(pair))
	l.up(name)
	l.up(name + "p")
}

func (l *lab) up(name string) {
	l.Helper()
	dev, err := netlink.LinkByName(name)
	must(l, err)
	must(l, netlink.LinkSetUp(dev))
}

func (l *lab) del(name string) {
	l.Helper()
	dev, err := netlink.LinkByName(name)
	must(l, err)
	must(l, netlink.LinkDel(dev))
}

func (l *lab) rename(from, to string) {
	l.Helper()
	dev, err := netlink.LinkByName(from)
	must(l, err)
	must(l, netlink.LinkSetDown(dev))
	must(l, netlink.LinkSetName(dev, to))
	must(l, netlink.LinkSetUp(dev))
}

// program returns the id of the program on an interface, and its mode.
func (l *lab) program(name string) (ebpf.ProgramID, Mode) {
	l.Helper()
	dev, err := deviceByName(name)
	must(l, err)
	return dev.program, dev.mode()
}

// attach attaches, and fails the test if it can't.
func (l *lab) attach(s *Set, name string, mode Mode) Attachment {
	l.Helper()
	a, err := s.Attach(name, mode)
	must(l, err)
	return a
}

var shieldedMAC = [6]byte{0x02, 0, 0, 0, 0, 0x10}

// frame is a UDP packet to the shielded interface.
func frame(src netip.Addr) []byte {
	b := append([]byte{}, shieldedMAC[:]...)
	b = append(b, 0x02, 0, 0, 0, 0, 0x20, 0x08, 0x00)
	ip := make([]byte, 20+8+18)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	a := src.As4()
	copy(ip[12:], a[:])
	copy(ip[16:], []byte{10, 0, 0, 1})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 9)
	binary.BigEndian.PutUint16(ip[24:], 26)
	return append(b, ip...)
}

var (
	clean   = netip.MustParseAddr("192.0.2.1")
	martian = netip.MustParseAddr("127.0.0.9") // dropped whatever the tables hold
)

func (l *lab) sendFrame(name string, b []byte) {
	l.Helper()
	peer, err := netlink.LinkByName(name + "p")
	must(l, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(l, err)
	defer unix.Close(fd)
	var sendErr error
	l.eventually("a frame is sent", func() bool { // ENOBUFS: it was dropped on its way to the peer
		sendErr = unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: peer.Attrs().Index, Halen: 6})
		return !errors.Is(sendErr, unix.ENOBUFS)
	})
	must(l, sendErr)
}

// send sends n frames through the peer of a shielded interface.
func (l *lab) send(name string, src netip.Addr, n int) {
	l.Helper()
	for range n {
		l.sendFrame(name, frame(src))
	}
}

// packets reads a counter of a slot, through the pins, whether a set is open or not.
func (l *lab) packets(slot uint32, reason bpf.Reason) uint64 {
	l.Helper()
	return l.counter(slot, reason).Packets
}

func (l *lab) bytes(slot uint32, reason bpf.Reason) uint64 {
	l.Helper()
	return l.counter(slot, reason).Bytes
}

func (l *lab) counter(slot uint32, reason bpf.Reason) (sum bpf.Counter) {
	l.Helper()
	m, err := ebpf.LoadPinnedMap(mapPin(rootPins(l.root).set(), bpf.LeveeMapCounters), nil)
	must(l, err)
	defer m.Close()
	for monitored := range uint32(2) {
		var cpus []bpf.Counter
		index := ((slot*uint32(bpf.ReasonMax)+uint32(reason))*uint32(bpf.FamilyMax)+uint32(bpf.FamilyIPv4))*2 + monitored
		must(l, m.Lookup(index, &cpus))
		for _, c := range cpus {
			sum.Packets += c.Packets
			sum.Bytes += c.Bytes
		}
	}
	return sum
}

// wantShield sends martians and waits until the counter of drops has moved by their number.
func (l *lab) wantShield(name string, slot uint32) {
	l.Helper()
	before := l.packets(slot, bpf.ReasonMartian)
	l.send(name, martian, 10)
	l.eventually("10 martians counted on "+name, func() bool {
		return l.packets(slot, bpf.ReasonMartian) == before+10
	})
}

// wantShieldAtLeast waits until n more martians were counted than before.
func (l *lab) wantShieldAtLeast(name string, slot uint32, n uint64) {
	l.Helper()
	before := l.packets(slot, bpf.ReasonMartian)
	l.eventually(fmt.Sprintf("%d martians counted on %s", n, name), func() bool {
		return l.packets(slot, bpf.ReasonMartian) >= before+n
	})
}

// eventually waits for what comes by itself: softirqs, RCU, another goroutine. A machine without hardware's
// help, to which -test.short is given, may take as long as the verifier takes there, several times.
func (l *lab) eventually(what string, ok func() bool) {
	l.Helper()
	limit := 10 * time.Second
	if testing.Short() {
		limit = time.Minute
	}
	deadline := time.Now().Add(limit)
	for !ok() {
		if time.Now().After(deadline) {
			l.Fatalf("not within %v: %s", limit, what)
		}
		time.Sleep(time.Millisecond)
	}
}

// trivial loads a foreign program.
func (l *lab) trivial() *ebpf.Program {
	l.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "theirs", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	must(l, err)
	l.Cleanup(func() { prog.Close() })
	return prog
}

func (l *lab) programGone(id ebpf.ProgramID) {
	l.Helper()
	l.eventually(fmt.Sprintf("program %d is gone", id), func() bool {
		p, err := ebpf.NewProgramFromID(id)
		if err == nil {
			p.Close()
		}
		return errors.Is(err, os.ErrNotExist)
	})
}

// tree lists what is pinned, relative to the root.
func (l *lab) tree() []string {
	var all []string
	filepath.WalkDir(l.root, func(path string, _ os.DirEntry, err error) error {
		if err == nil && path != l.root {
			all = append(all, strings.TrimPrefix(path, l.root+"/"))
		}
		return nil
	})
	return all
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

// Flags of linux/if_link.h.
const (
	xdpFlagsGeneric = 1 << 1
	xdpFlagsNative  = 1 << 2
)

// setXDP attaches as `ip link set` does; fd -1 detaches.
func (l *lab) setXDP(name string, fd, flags int) {
	l.Helper()
	dev, err := netlink.LinkByName(name)
	must(l, err)
	must(l, netlink.LinkSetXdpFdWithFlags(dev, fd, flags))
}
