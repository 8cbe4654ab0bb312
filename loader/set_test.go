package loader

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/levee-xdp/levee/bpf"
)

func mapID(t testing.TB, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	must(t, err)
	id, _ := info.ID()
	return id
}

func TestOpenCreatesThenAdopts(t *testing.T) {
	l := newLab(t)
	before := descriptors(t)
	s := l.open()
	if adopted, why := s.Adopted(); adopted || why != "no set was pinned" {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	for _, name := range []string{bpf.LeveeMapControls, bpf.LeveeMapBan4Table, bpf.LeveeMapEvents, bpf.LeveeMapMeta} {
		if s.Maps()[name] == nil {
			t.Errorf("map %s is missing", name)
		}
	}
	ids := map[string]ebpf.MapID{}
	for name, m := range s.Maps() {
		ids[name] = mapID(t, m)
	}
	var meta bpf.Meta
	must(t, s.Maps()[bpf.LeveeMapMeta].Lookup(uint32(0), &meta))
	if meta.Schema != bpf.Schema || meta.Secret == [2]uint64{} || meta.Secret[0] == meta.Secret[1] || meta.Created == 0 {
		t.Errorf("meta %+v", meta)
	}
	must(t, s.Close())

	again := l.open()
	if adopted, why := again.Adopted(); !adopted || why != "" {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	for name, m := range again.Maps() {
		if got := mapID(t, m); got != ids[name] {
			t.Errorf("map %s: id %d, was %d", name, got, ids[name])
		}
	}
	if again.secret != meta.Secret {
		t.Error("the secret did not last")
	}
	must(t, again.Close())
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
}

func TestShieldStaysWhileNobodyRuns(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	c := l.config()
	c.Features = bpf.Features{} // the defaults
	s := l.openWith(c)
	a := l.attach(s, "net0", ModeAuto)
	if a.Mode != ModeNative || a.Why != "" || a.Ifindex == 0 || a.ProgramID == 0 || len(a.ProgramTag) != 16 {
		t.Errorf("attachment %+v", a)
	}
	l.wantShield("net0", a.Slot)
	must(t, s.Close())

	l.wantShield("net0", a.Slot)
	if n := l.packets(a.Slot, bpf.ReasonClean); n != 0 {
		t.Errorf("%d clean packets before any was sent", n)
	}
	l.send("net0", clean, 5)
	l.eventually("clean packets pass", func() bool { return l.packets(a.Slot, bpf.ReasonClean) == 5 })

	s = l.openWith(c)
	if b := l.attach(s, "net0", ModeAuto); b != a {
		t.Errorf("after a restart %+v, was %+v", b, a)
	}
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 0 {
		t.Errorf("an upgrade to the same program changed %+v", changed)
	}
	if n := l.packets(a.Slot, bpf.ReasonMartian); n != 20 {
		t.Errorf("%d martians, sent 20", n)
	}
}

func TestLock(t *testing.T) {
	l := newLab(t)
	s := l.open()
	before := descriptors(t)
	c := l.config()
	told := 0
	c.Locked = func() { told++ }
	_, err := Open(c)
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Path != l.lock || time.Since(locked.Since) > time.Minute || time.Until(locked.Since) > 0 ||
		err.Error() != fmt.Sprintf("lock %s: process %d (%s) holds it since %s; one daemon at a time shields a host: stop that one first, its shield stays up",
			l.lock, os.Getpid(), locked.Name, locked.Since.Format(time.RFC3339)) || locked.Name == "" {
		t.Fatalf("a second set: %v", err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	must(t, s.Close())
	if told != 0 {
		t.Error("it was told that it holds the lock")
	}
	s, err = Open(c)
	must(t, err)
	must(t, s.Close())
	if told != 1 {
		t.Errorf("it was told %d times that it holds the lock", told)
	}
}

func TestBadRoots(t *testing.T) {
	l := newLab(t)
	c := l.config()
	c.Root = t.TempDir() + "/levee"
	if _, err := Open(c); !errors.Is(err, ErrNoBPFFS) || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("a root on another filesystem: %v", err)
	}
	c.Root = "/sys/fs/bpf/le.vee"
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "dots") {
		t.Errorf("a root with a dot: %v", err)
	}
	c.Root = "levee"
	if _, err := Open(c); err == nil {
		t.Error("a relative root was taken")
	}
	c = l.config()
	c.Sizes.Sources = 3
	if _, err := Open(c); err == nil || !strings.Contains(err.Error(), "sources") {
		t.Errorf("a size out of range: %v", err)
	}
	if exists(l.root) {
		t.Error("a refused Open left pins")
	}
}

// A set that can't be created whole leaves nothing behind, neither pins nor descriptors.
func TestFailureInTheMiddleLeavesNothing(t *testing.T) {
	l := newLab(t)
	c := l.config()
	spec, err := bpf.LoadLevee()
	must(t, err)
	for _, name := range []string{bpf.LeveeMapStats, bpf.LeveeMapAllows, bpf.LeveeMapEvents} {
		c.Spec = spec.Copy()
		c.Spec.Maps[name].KeySize = 3
		before := descriptors(t)
		if _, err := Open(c); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("broken %s: %v", name, err)
		}
		if exists(l.root) {
			t.Errorf("broken %s: left %v", name, l.tree())
		}
		if after := descriptors(t); after != before {
			t.Errorf("broken %s: %d descriptors, were %d", name, after, before)
		}
	}
	l.open()

	// Killed while it made a set, or between the two renames of an old kernel.
	p := rootPins(l.root)
	must(t, os.MkdirAll(p.fresh()+"/maps", 0o700))
	must(t, os.Rename(p.set(), p.old()))
	must(t, p.recover())
	if exists(p.fresh()) || exists(p.old()) || !exists(mapPin(p.set(), bpf.LeveeMapMeta)) {
		t.Errorf("recovered to %v", l.tree())
	}

	// A kernel that can't exchange folders.
	must(t, os.MkdirAll(p.fresh()+"/maps", 0o700))
	must(t, p.swapByRename())
	if exists(p.fresh()) || exists(mapPin(p.set(), bpf.LeveeMapMeta)) || !exists(mapPin(p.old(), bpf.LeveeMapMeta)) {
		t.Errorf("swapped to %v", l.tree())
	}
	must(t, p.prune())
	if dirs, err := p.sets(); err != nil || !slices.Equal(dirs, []string{p.set()}) {
		t.Errorf("pruned to %v, %v", dirs, err)
	}
}

func TestUpgradeByLinkUpdate(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a, b := l.attach(s, "net0", ModeAuto), l.attach(s, "net1", ModeGeneric)
	l.wantShield("net0", a.Slot)
	must(t, s.Close())

	c := l.config()
	c.Features.Events = true
	s = l.openWith(c)
	if adopted, why := s.Adopted(); !adopted {
		t.Fatal(why)
	}
	before := descriptors(t)
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 2 {
		t.Fatalf("changed %+v", changed)
	}
	for i, was := range []Attachment{a, b} {
		now := changed[i]
		if now.LinkID != was.LinkID || now.Slot != was.Slot || now.Mode != was.Mode {
			t.Errorf("%+v was %+v", now, was)
		}
		if now.ProgramID == was.ProgramID {
			t.Errorf("%s: the program did not change", now.Name)
		}
		if now.ProgramTag != was.ProgramTag {
			t.Errorf("%s: constants changed the tag; the comparison by .rodata can go", now.Name)
		}
		l.programGone(was.ProgramID)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	l.wantShield("net0", a.Slot)
	l.wantShield("net1", b.Slot)
	if changed, err := s.Upgrade(); err != nil || len(changed) != 0 {
		t.Errorf("once more: %+v, %v", changed, err)
	}
}

// Links whose program was loaded without an expected attach type refuse one that has it.
func TestUpgradeOfAnotherAttachType(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	c := l.config()
	spec, err := bpf.LoadLevee()
	must(t, err)
	spec.Programs[bpf.LeveeProgLevee].AttachType = ebpf.AttachNone
	c.Spec = spec
	s := l.openWith(c)
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())

	c = l.config()
	c.Features.Events = true
	s = l.openWith(c)
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 1 || changed[0].LinkID != a.LinkID || changed[0].ProgramID == a.ProgramID {
		t.Errorf("changed %+v, was %+v", changed, a)
	}
	l.wantShield("net0", a.Slot)
}

// If one program does not load, no interface changes.
func TestUpgradeIsAllOrNothing(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())

	c := l.config()
	c.Sizes.Sources *= 2
	spec, err := bpf.LoadLevee()
	must(t, err)
	prog := spec.Programs[bpf.LeveeProgLevee]
	prog.Instructions = prog.Instructions[1:] // it uses a register before it sets it
	c.Spec = spec
	s = l.openWith(c)
	if _, err := s.Upgrade(); err == nil {
		t.Fatal("an upgrade to a broken program worked")
	}
	must(t, s.Close())
	if id, _ := l.program("net0"); id != a.ProgramID {
		t.Errorf("program %d, was %d", id, a.ProgramID)
	}
	l.wantShield("net0", a.Slot)
	s = l.open()
	if adopted, why := s.Adopted(); !adopted {
		t.Errorf("the set that was not replaced is gone: %s", why)
	}
}

// Other sizes make a new set; the old one shields until the upgrade, and then it is gone.
func TestOtherSizesReplaceTheSetWithoutAGap(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	l.wantShield("net0", a.Slot)
	old := mapID(t, s.Maps()[bpf.LeveeMapBan4Table])
	counters := mapID(t, s.Maps()[bpf.LeveeMapCounters])
	must(t, SetPanic(l.root, true))
	must(t, s.Close())

	c := l.config()
	c.Sizes.Ban4Entries *= 2
	s = l.openWith(c)
	adopted, why := s.Adopted()
	if adopted || why != "the pinned set differs: ban4_table has room for 1024, wanted 2048" {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	if mapID(t, s.Maps()[bpf.LeveeMapBan4Table]) == old {
		t.Error("the table that is to grow was not made anew")
	}
	if mapID(t, s.Maps()[bpf.LeveeMapCounters]) != counters {
		t.Error("the counters start afresh")
	}
	if id, _ := l.program("net0"); id != a.ProgramID {
		t.Error("the program changed before the upgrade")
	}
	must(t, SetPanic(l.root, false))
	must(t, SetPanic(l.root, true)) // both sets hear it
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 1 || changed[0].Slot != a.Slot || changed[0].LinkID != a.LinkID {
		t.Errorf("changed %+v", changed)
	}
	if on, err := Panic(l.root); err != nil || !on {
		t.Errorf("the panic switch did not survive: %v, %v", on, err)
	}
	must(t, SetPanic(l.root, false))
	l.wantShield("net0", a.Slot)
	l.eventually("the old table is freed", func() bool {
		m, err := ebpf.NewMapFromID(old)
		if err == nil {
			m.Close()
		}
		return errors.Is(err, os.ErrNotExist)
	})
	if dirs, _ := rootPins(l.root).sets(); !slices.Equal(dirs, []string{rootPins(l.root).set()}) {
		t.Errorf("sets %v", dirs)
	}
	must(t, s.Close())

	s = l.openWith(c)
	if adopted, why := s.Adopted(); !adopted {
		t.Error(why)
	}
}

// A set that was to replace another and was not used leaves the other as it was.
func TestUnusedReplacementGoes(t *testing.T) {
	l := newLab(t)
	s := l.open()
	must(t, s.Close())
	c := l.config()
	c.Sizes.Allows *= 2
	s = l.openWith(c)
	if !exists(rootPins(l.root).fresh()) {
		t.Fatal("no new set")
	}
	must(t, s.Close())
	if exists(rootPins(l.root).fresh()) {
		t.Error("the unused set is still pinned")
	}
	s = l.open()
	if adopted, why := s.Adopted(); !adopted {
		t.Error(why)
	}
}

// A daemon of another schema takes the interfaces over without a gap.
func TestAnotherSchemaIsTakenOver(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())
	must(t, os.Rename(rootPins(l.root).set(), l.root+"/999"))

	s = l.open()
	if adopted, why := s.Adopted(); adopted || why != fmt.Sprintf("the pinned set has schema 999, this program has %d", bpf.Schema) {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	if id, _ := l.program("net0"); id != a.ProgramID {
		t.Error("the program changed before the upgrade")
	}
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) != 1 || changed[0].LinkID != a.LinkID {
		t.Errorf("changed %+v", changed)
	}
	l.wantShield("net0", changed[0].Slot)
	if exists(l.root + "/999") {
		t.Error("the set of the other schema is still pinned")
	}
}

func TestDescriptionIsChecked(t *testing.T) {
	l := newLab(t)
	s := l.open()
	must(t, s.Maps()[bpf.LeveeMapMeta].Put(uint32(0), bpf.Meta{Schema: bpf.Schema + 1, Secret: s.secret}))
	must(t, s.Close())
	s = l.open()
	if adopted, why := s.Adopted(); adopted || !strings.Contains(why, "schema") {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	must(t, s.Close())

	must(t, os.Remove(mapPin(rootPins(l.root).set(), bpf.LeveeMapLimits)))
	s = l.open()
	if adopted, why := s.Adopted(); adopted || !strings.Contains(why, "limits is missing") {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	if _, err := s.Upgrade(); err != nil {
		t.Error(err)
	}
	must(t, s.Close())

	pin := mapPin(rootPins(l.root).set(), bpf.LeveeMapStats)
	must(t, os.Remove(pin))
	must(t, l.trivial().Pin(pin))
	s = l.open()
	if adopted, why := s.Adopted(); adopted || !strings.Contains(why, "stats is not a map") {
		t.Errorf("adopted %v, %q", adopted, why)
	}
	if _, err := s.Upgrade(); err != nil {
		t.Error(err)
	}
}

func TestForeignProgramsAreLeftAlone(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	theirs := l.trivial()
	info, err := theirs.Info()
	must(t, err)
	id, _ := info.ID()
	dev, err := deviceByName("net0")
	must(t, err)

	check := func(how string, mode Mode, linked bool) {
		t.Helper()
		before := descriptors(t)
		for _, m := range []Mode{ModeAuto, ModeNative, ModeGeneric} {
			_, err := s.Attach("net0", m)
			var foreign *ForeignError
			if !errors.As(err, &foreign) {
				t.Fatalf("%s: %v", how, err)
			}
			if foreign.Name != "net0" || foreign.ProgramID != id || foreign.Program != "theirs" ||
				foreign.Tag != info.Tag || foreign.Mode != mode || (foreign.LinkID != 0) != linked {
				t.Errorf("%s: %+v", how, foreign)
			}
			for _, word := range []string{"net0", `"theirs"`, info.Tag, mode.String()} {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%s: %q is not in: %v", how, word, err)
				}
			}
		}
		if got, _ := l.program("net0"); got != id {
			t.Errorf("%s: program %d, was %d", how, got, id)
		}
		if all, err := s.Attachments(); err != nil || len(all) != 0 {
			t.Errorf("%s: attachments %+v, %v", how, all, err)
		}
		if after := descriptors(t); after != before {
			t.Errorf("%s: %d descriptors, were %d", how, after, before)
		}
	}

	byLink, err := link.AttachXDP(link.XDPOptions{Program: theirs, Interface: dev.index, Flags: link.XDPDriverMode})
	must(t, err)
	check("by link", ModeNative, true)
	must(t, byLink.Close())

	l.eventually("their link is gone", func() bool { p, _ := l.program("net0"); return p == 0 })
	l.setXDP("net0", theirs.FD(), xdpFlagsNative)
	check("by netlink", ModeNative, false)
	l.setXDP("net0", -1, xdpFlagsNative)
	l.setXDP("net0", theirs.FD(), xdpFlagsGeneric)
	check("by netlink, generic", ModeGeneric, false)
	l.setXDP("net0", -1, xdpFlagsGeneric)

	a := l.attach(s, "net0", ModeAuto)
	l.wantShield("net0", a.Slot)
}

// A program that gets in between the look and the attachment is refused by the kernel, and named.
func TestForeignProgramInBetween(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	theirs := l.trivial()
	dev, err := deviceByName("net0")
	must(t, err)
	for _, flags := range []int{xdpFlagsNative, xdpFlagsGeneric} {
		l.setXDP("net0", theirs.FD(), flags)
		for _, mode := range []Mode{ModeAuto, ModeNative, ModeGeneric} {
			_, err := s.link(dev, 0, mode)
			var foreign *ForeignError
			if !errors.As(err, &foreign) || foreign.Program != "theirs" {
				t.Errorf("%s: %v", mode, err)
			}
		}
		l.setXDP("net0", -1, flags)
	}
}
