package loader

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/levee-xdp/levee/bpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestModes(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeGeneric)
	if _, mode := l.program("net0"); mode != ModeGeneric || a.Mode != ModeGeneric || a.Why != "" {
		t.Errorf("generic: mode %s, %+v", mode, a)
	}
	l.wantShield("net0", a.Slot)
	_, err := s.Attach("net0", ModeNative)
	var other *ModeError
	if !errors.As(err, &other) || other.Have != ModeGeneric || other.Want != ModeNative {
		t.Errorf("native over generic: %v", err)
	}
	if b := l.attach(s, "net0", ModeAuto); b != a {
		t.Errorf("auto over generic: %+v, was %+v", b, a)
	}
	must(t, s.Close())
	s = l.open()
	if b := l.attach(s, "net0", ModeAuto); b.Why == "" {
		t.Error("generic mode of an earlier process is not explained")
	}
	must(t, s.Detach("net0"))
	if _, err := s.Attach("lo", ModeNative); err == nil || !strings.Contains(err.Error(), "loopback") {
		t.Errorf("native on loopback: %v", err)
	}
	if all, err := s.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("a refused attachment left %+v, %v", all, err)
	}
	a = l.attach(s, "net0", ModeNative)
	if _, mode := l.program("net0"); mode != ModeNative || a.Mode != ModeNative {
		t.Errorf("native: mode %s, %+v", mode, a)
	}
	l.wantShield("net0", a.Slot)

	for name, want := range map[string]Mode{"auto": ModeAuto, "native": ModeNative, "generic": ModeGeneric} {
		if got, err := ParseMode(name); got != want || err != nil {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if _, err := ParseMode("none"); err == nil {
		t.Error("none is no wish")
	}
	if _, err := s.Attach("net0p", ModeNone); err == nil {
		t.Error("attached in mode none")
	}
}

func TestDetach(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	before := descriptors(t)
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Detach("net0"))
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	if id, _ := l.program("net0"); id != 0 {
		t.Errorf("program %d is still there", id)
	}
	l.programGone(a.ProgramID)
	if err := s.Detach("net0"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("twice: %v", err)
	}
	if all, err := s.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("attachments %+v, %v", all, err)
	}
	must(t, s.Close())
	if _, err := s.Attach("net0", ModeAuto); !errors.Is(err, os.ErrClosed) {
		t.Errorf("attach to a closed set: %v", err)
	}
}

// An interface is detached though its program's pin can't be removed just then; that is tried again.
func TestDetachLeavesAPin(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	pin := programPin(s.pins.program(a.ProgramID))
	must(t, unix.Mount(pin, pin, "", unix.MS_BIND, "")) // what is mounted on can't be removed
	mounted := true
	unmount := func() {
		if mounted {
			must(t, unix.Unmount(pin, 0))
		}
		mounted = false
	}
	t.Cleanup(unmount)

	must(t, s.Detach("net0"))
	if id, _ := l.program("net0"); id != 0 {
		t.Errorf("program %d is still there", id)
	}
	if !exists(pin) {
		t.Fatal("the pin is gone: this is no test of one that can't be removed")
	}
	unmount()
	s.reconcile(time.Now())
	l.programGone(a.ProgramID)
	if exists(pin) {
		t.Error("the pin is still there")
	}
}

func TestNamesThatAreNoInterfaces(t *testing.T) {
	l := newLab(t)
	s := l.open()
	for _, name := range []string{"", "sixteen-letters-", "../meta"} {
		if _, err := s.Attach(name, ModeAuto); err == nil {
			t.Errorf("attached %q", name)
		}
	}
	if _, err := s.Attach("nowhere0", ModeAuto); !errors.Is(err, ErrNoInterface) {
		t.Errorf("a missing interface: %v", err)
	}
	if all, err := s.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("attachments %+v, %v", all, err)
	}
}

// A bpf filesystem takes no dots in names; VLANs are called with one.
func TestNameWithADot(t *testing.T) {
	l := newLab(t)
	l.veth("net0.100", 1500)
	s := l.open()
	a := l.attach(s, "net0.100", ModeAuto)
	if !exists(l.root + "/links/net0%2e100") {
		t.Errorf("pins %v", l.tree())
	}
	l.wantShield("net0.100", a.Slot)
	must(t, s.Close())
	s = l.open()
	if b := l.attach(s, "net0.100", ModeAuto); b != a {
		t.Errorf("after a restart %+v, was %+v", b, a)
	}
	must(t, s.Detach("net0.100"))
	if names, err := rootPins(l.root).linkPins(); err != nil || len(names) != 0 {
		t.Errorf("pins %v, %v", names, err)
	}
}

func TestRefusalsInWords(t *testing.T) {
	for _, c := range []struct {
		dev   device
		err   error
		frags bool
		want  string
	}{
		{device{kind: "vlan"}, unix.EOPNOTSUPP, true, "a VLAN has no native mode; its parent may have (EOPNOTSUPP)"},
		{device{kind: "device", loopback: true}, unix.EOPNOTSUPP, true, "the loopback interface has no native mode (EOPNOTSUPP)"},
		{device{kind: "device"}, unix.EOPNOTSUPP, true, "LRO"},
		{device{kind: "device", mtu: 9000}, unix.EINVAL, false, "MTU (9000"},
		{device{kind: "device", mtu: 9000}, unix.EINVAL, true, "queues"},
		{device{kind: "veth", mtu: 9000}, unix.ERANGE, false, "kernel 5.18"},
		{device{kind: "device"}, unix.ENOMEM, true, "too little memory"},
		{device{kind: "device"}, fmt.Errorf("odd"), true, "the driver refused native mode"},
	} {
		if got := refusal(&c.dev, c.err, c.frags); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q lacks %q", c.err, got, c.want)
		}
	}
}

func TestLoopbackKeepsItsAddresses(t *testing.T) {
	l := newLab(t)
	l.up("lo")
	s := l.open()
	a := l.attach(s, "lo", ModeAuto)
	if a.Mode != ModeGeneric || !strings.Contains(a.Why, "loopback") {
		t.Errorf("attachment %+v", a)
	}
	server, err := net.ListenPacket("udp4", "127.0.0.1:0")
	must(t, err)
	defer server.Close()
	_, err = server.WriteTo([]byte("still there"), server.LocalAddr())
	must(t, err)
	must(t, server.SetReadDeadline(time.Now().Add(5*time.Second)))
	if _, _, err := server.ReadFrom(make([]byte, 64)); err != nil {
		t.Errorf("loopback does not hear itself: %v", err)
	}
	if n := l.packets(a.Slot, bpf.ReasonMartian); n != 0 {
		t.Errorf("%d packets from 127.0.0.1 are martians on loopback", n)
	}
}

// On a veth, native mode needs a program for several buffers if the peer's MTU is above 3.5 kB.
func TestLargeMTU(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 9000)
	s := l.open()
	if !s.frags {
		t.Fatal("this kernel has bpf_xdp_get_buff_len, the set does not use it")
	}
	a := l.attach(s, "net0", ModeAuto)
	if a.Mode != ModeNative || a.Why != "" {
		t.Errorf("with several buffers: %+v", a)
	}
	l.wantShield("net0", a.Slot)
	bytes := l.bytes(a.Slot, bpf.ReasonMartian)
	l.sendFrame("net0", append(frame(martian), make([]byte, 8000)...))
	want := bytes + uint64(len(frame(martian))) + 8000
	l.eventually("a jumbo frame is counted whole", func() bool { return l.bytes(a.Slot, bpf.ReasonMartian) == want })
	must(t, s.Detach("net0"))

	s.frags = false
	a = l.attach(s, "net0", ModeAuto)
	if a.Mode != ModeGeneric || !strings.Contains(a.Why, "MTU (9000") || !strings.Contains(a.Why, "5.18") {
		t.Errorf("without: %+v", a)
	}
	l.wantShield("net0", a.Slot)
	must(t, s.Detach("net0"))
	if _, err := s.Attach("net0", ModeNative); err == nil || !strings.Contains(err.Error(), "MTU (9000") {
		t.Errorf("native without: %v", err)
	}
	if id, _ := l.program("net0"); id != 0 {
		t.Errorf("program %d is attached after a refusal", id)
	}
}

// An interface gets its slot's counters at zero, also if another one had the slot.
func TestSlots(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	l.wantShield("net0", a.Slot)
	b := l.attach(s, "net1", ModeAuto)
	if a.Slot == b.Slot {
		t.Fatalf("both have slot %d", a.Slot)
	}
	l.wantShield("net1", b.Slot)
	if n := l.packets(a.Slot, bpf.ReasonMartian); n != 10 {
		t.Errorf("net0 counted %d, want 10", n)
	}
	var e bpf.Interface
	must(t, s.Maps()[bpf.LeveeMapInterfaces].Lookup(b.Slot, &e))
	if slotName(e) != "net1" || int(e.Ifindex) != b.Ifindex || e.Mode != uint32(ModeNative) {
		t.Errorf("slot %d is %+v", b.Slot, e)
	}
	must(t, s.Detach("net0"))
	must(t, s.Detach("net1"))
	if b = l.attach(s, "net1", ModeAuto); b.Slot != a.Slot {
		t.Errorf("slot %d, want the free one, %d", b.Slot, a.Slot)
	}
	if n := l.packets(b.Slot, bpf.ReasonMartian); n != 0 {
		t.Errorf("net1 begins with the %d packets of another", n)
	}

	table, err := readSlots(s.Maps()[bpf.LeveeMapInterfaces])
	must(t, err)
	for i, e := range table.entry {
		if e.Ifindex == 0 {
			must(t, table.write(i, bpf.Interface{Ifindex: 1 << 30, Name: cName("gone" + string(rune('!'+i)))}))
		}
	}
	if _, err := s.Attach("net0", ModeAuto); !errors.Is(err, ErrTooManyInterfaces) {
		t.Errorf("the 65th interface: %v", err)
	}
	if id, _ := l.program("net0"); id != 0 {
		t.Error("the 65th interface has a program")
	}
}

func TestStalePins(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())
	l.del("net0")
	l.veth("net0", 1500)

	s = l.open()
	all, err := s.Attachments()
	must(t, err)
	if len(all) != 1 || all[0].Mode != ModeNone || all[0].Slot != a.Slot || all[0].Why == "" {
		t.Errorf("attachments %+v", all)
	}
	b := l.attach(s, "net0", ModeAuto)
	if b.Ifindex == a.Ifindex || b.LinkID == a.LinkID || b.Slot != a.Slot {
		t.Errorf("attached as %+v, was %+v", b, a)
	}
	l.wantShield("net0", b.Slot)

	// Somebody forced the link off; the pin stays.
	pinnedLink, err := link.LoadPinnedLink(rootPins(l.root).link("net0"), nil)
	must(t, err)
	must(t, pinnedLink.Detach())
	must(t, pinnedLink.Close())
	if changed, err := s.Upgrade(); err != nil || len(changed) != 0 {
		t.Errorf("upgrade %+v, %v", changed, err)
	}
	b = l.attach(s, "net0", ModeAuto)
	l.wantShield("net0", b.Slot)
}

// The shield goes with an interface that is renamed, also when two swap their names.
func TestRename(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a, b := l.attach(s, "net0", ModeAuto), l.attach(s, "net1", ModeGeneric)

	l.rename("net0", "tmp0")
	l.rename("net1", "net0")
	l.rename("tmp0", "net1")
	all, err := s.Attachments()
	must(t, err)
	a.Name, b.Name = "net1", "net0"
	if len(all) != 2 || all[0] != a || all[1] != b {
		t.Errorf("after a swap %+v, want %+v and %+v", all, a, b)
	}
	l.send("net0", martian, 3) // net0p is the peer of what is now net1
	l.eventually("3 martians", func() bool { return l.packets(a.Slot, bpf.ReasonMartian) == 3 })
	s.reconcile(time.Now())
	if changed, err := s.Upgrade(); err != nil || len(changed) != 0 {
		t.Errorf("upgrade %+v, %v", changed, err)
	}
	must(t, s.Detach("net0"))
	if id, _ := l.program("net1"); id != a.ProgramID {
		t.Error("the wrong one was detached")
	}

	// Killed while it followed: the pin is found under its name between two names.
	must(t, os.Rename(rootPins(l.root).link("net1"), rootPins(l.root).link(movingPin(0))))
	all, err = s.Attachments()
	must(t, err)
	if len(all) != 1 || all[0] != a {
		t.Errorf("after a kill %+v, want %+v", all, a)
	}

	// Whoever is called next as an interface was when it was attached is shielded, too.
	l.rename("net1", "net9")
	l.rename("net0", "net1")
	s.reconcile(time.Now())
	all, err = s.Attachments()
	must(t, err)
	if len(all) != 2 || all[0].Name != "net9" || all[0].Slot != a.Slot || all[1].Name != "net1" || all[1].Mode == ModeNone {
		t.Errorf("after another came %+v", all)
	}
}

// An interface in another network namespace keeps its program; here it is gone until it is back or
// another takes its name.
func TestInterfaceInAnotherNamespace(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	other, err := netns.New()
	must(t, err)
	defer other.Close()
	must(t, netns.Set(l.ns))
	move := func(from, to netns.NsHandle) {
		t.Helper()
		must(t, netns.Set(from))
		dev, err := netlink.LinkByName("net0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(dev, int(to)))
		must(t, netns.Set(l.ns))
	}

	move(l.ns, other)
	all, err := s.Attachments()
	must(t, err)
	if len(all) != 1 || all[0].Mode != ModeNone {
		t.Errorf("while it is away %+v", all)
	}
	move(other, l.ns)
	l.up("net0")
	all, err = s.Attachments()
	must(t, err)
	if len(all) != 1 || all[0].Slot != a.Slot || all[0].LinkID != a.LinkID || all[0].Mode != ModeNative {
		t.Errorf("back again %+v, was %+v", all, a)
	}
	l.wantShield("net0", a.Slot)

	// Another interface takes its name: it is the one that is wanted here.
	move(l.ns, other)
	l.rename("net0p", "away0p")
	l.veth("net0", 1500)
	b := l.attach(s, "net0", ModeAuto)
	if b.LinkID == a.LinkID || b.Slot != a.Slot {
		t.Errorf("attached as %+v, was %+v", b, a)
	}
	l.wantShield("net0", b.Slot)
	l.programGone(a.ProgramID)
}

// Of an interface that is there it is not said that it is not.
func TestWhyNot(t *testing.T) {
	if why := WhyNot("lo"); !strings.Contains(why, "levee attach lo") {
		t.Error(why)
	}
	if why := WhyNot("nowhere0"); why != ErrNoInterface.Error() {
		t.Error(why)
	}
}
