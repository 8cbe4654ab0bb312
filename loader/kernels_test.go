package loader

import (
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// virtio moves two joined virtio-net interfaces from the host's namespace to the test's, as net0, which is
// to be shielded, and net0p. The kernel gives them back when the namespace ends. Only virtual machines
// that are made for tests have them: an interface that somebody needs is never named in LEVEE_VIRTIO.
func (l *lab) virtio() {
	l.Helper()
	host, err := netns.GetFromPid(1)
	must(l, err)
	defer host.Close()
	outside, err := netlink.NewHandleAt(host, unix.NETLINK_ROUTE)
	must(l, err)
	defer outside.Close()
	names := strings.Split(os.Getenv("LEVEE_VIRTIO"), ",")
	for i, name := range []string{"net0", "net0p"} {
		dev, err := outside.LinkByName(names[i])
		must(l, err)
		must(l, outside.LinkSetNsFd(dev, int(l.ns)))
		dev, err = netlink.LinkByName(names[i])
		must(l, err)
		must(l, netlink.LinkSetName(dev, name))
		if name == "net0" {
			must(l, netlink.LinkSetHardwareAddr(dev, shieldedMAC[:]))
		}
		l.up(name)
	}
}

func (l *lab) setMTU(mtu int, names ...string) {
	l.Helper()
	for _, name := range names {
		dev, err := netlink.LinkByName(name)
		must(l, err)
		must(l, netlink.LinkSetMTU(dev, mtu))
	}
}

// A kernel is believed to know instructions of version 4 if and only if it is new enough.
func TestHaveV4(t *testing.T) {
	needsRoot(t)
	release, err := kernelRelease()
	must(t, err)
	major, minor := kernelVersion(release)
	if want := major > 6 || major == 6 && minor >= 6; haveV4() != want {
		t.Errorf("on %s: %v", release, !want)
	}
}

// TestVirtio attaches to a driver of real machines: native, upgraded under traffic without a gap, and with
// jumbo frames, which its native mode takes since 6.3.
func TestVirtio(t *testing.T) {
	if len(strings.Split(os.Getenv("LEVEE_VIRTIO"), ",")) != 2 {
		t.Skip("LEVEE_VIRTIO names no two virtio-net interfaces that are joined; `make test-kernels` has them")
	}
	l := newLab(t)
	l.virtio()
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	if _, mode := l.program("net0"); mode != ModeNative || a.Mode != ModeNative || a.Why != "" {
		t.Errorf("mode %s, %+v", mode, a)
	}
	l.wantShield("net0", a.Slot)
	must(t, s.Close())

	gaps := l.detectGaps("net0")
	c := l.config()
	c.Features.Events = true
	s = l.openWith(c)
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 1 || changed[0].ProgramID == a.ProgramID {
		t.Errorf("upgraded %+v, was %+v", changed, a)
	}
	l.wantShieldAtLeast("net0", a.Slot, 100)
	if sent, passed := gaps.stop(); passed != 0 {
		t.Errorf("%d of %d frames met no shield", passed, sent)
	}
	must(t, s.Detach("net0"))

	l.setMTU(9000, "net0", "net0p")
	want := ModeGeneric
	release, err := kernelRelease()
	must(t, err)
	if major, minor := kernelVersion(release); major > 6 || major == 6 && minor >= 3 {
		want = ModeNative
	}
	a = l.attach(s, "net0", ModeAuto)
	if a.Mode != want || (want == ModeGeneric) != strings.Contains(a.Why, "MTU") {
		t.Errorf("with an MTU of 9000 on %s: %+v, want %s mode", release, a, want)
	}
	l.wantShield("net0", a.Slot)
}
