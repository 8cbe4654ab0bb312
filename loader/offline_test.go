package loader

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

func TestPanicWithoutADaemon(t *testing.T) {
	l := newLab(t)
	if err := SetPanic(l.root, true); !errors.Is(err, ErrNoSet) {
		t.Errorf("without a set: %v", err)
	}
	if _, err := Panic(l.root); !errors.Is(err, ErrNoSet) {
		t.Errorf("without a set: %v", err)
	}
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	controls := bpf.Control{Monitor: 0, EventBudget: 7, SourceIdle: 9}
	must(t, s.Maps()[bpf.LeveeMapControls].Put(uint32(0), controls))
	must(t, s.Close())

	before := descriptors(t)
	must(t, SetPanic(l.root, true))
	if on, err := Panic(l.root); !on || err != nil {
		t.Errorf("panic %v, %v", on, err)
	}
	l.send("net0", martian, 4)
	l.eventually("4 packets pass in panic", func() bool { return l.packets(a.Slot, bpf.ReasonPanic) == 4 })
	must(t, SetPanic(l.root, false))
	if on, err := Panic(l.root); on || err != nil {
		t.Errorf("panic %v, %v", on, err)
	}
	l.wantShield("net0", a.Slot)
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	s = l.open()
	var now bpf.Control
	must(t, s.Maps()[bpf.LeveeMapControls].Lookup(uint32(0), &now))
	if now != controls {
		t.Errorf("controls %+v, were %+v", now, controls)
	}
}

func TestDetachWithoutADaemon(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	b := l.attach(s, "net1", ModeAuto)
	must(t, s.Close())
	before := descriptors(t)
	must(t, DetachInterface(l.root, "net0"))
	if err := DetachInterface(l.root, "net0"); !errors.Is(err, ErrNotAttached) {
		t.Errorf("twice: %v", err)
	}
	if err := DetachInterface(l.root, "no/../name"); err == nil {
		t.Error("a path was taken for a name")
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	l.programGone(a.ProgramID)
	l.wantShield("net1", b.Slot)
	s = l.open()
	all, err := s.Attachments()
	must(t, err)
	if len(all) != 1 || all[0].Name != "net1" {
		t.Errorf("attachments %+v", all)
	}
}

func TestRemoveLeavesNothing(t *testing.T) {
	l := newLab(t)
	if done, err := Remove(l.root); len(done) != 0 || err != nil {
		t.Errorf("nothing there: %v, %v", done, err)
	}
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a, b := l.attach(s, "net0", ModeAuto), l.attach(s, "net1", ModeGeneric)
	must(t, s.Close())
	must(t, os.MkdirAll(l.root+"/999/maps", 0o700)) // a set of another schema

	before := descriptors(t)
	done, err := Remove(l.root)
	must(t, err)
	slices.Sort(done)
	want := []string{"detached net0", "detached net1", "removed the maps of " + rootPins(l.root).set(), "removed the maps of " + l.root + "/999"}
	if !slices.Equal(done, want) {
		t.Errorf("done %q, want %q", done, want)
	}
	if exists(l.root) {
		t.Errorf("left %v", l.tree())
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}
	for _, id := range []Attachment{a, b} {
		l.programGone(id.ProgramID)
	}
	for _, name := range []string{"net0", "net1"} {
		if id, _ := l.program(name); id != 0 {
			t.Errorf("%s has program %d", name, id)
		}
	}
}

// A daemon that still runs does not attach again what was removed under its hands.
func TestRemoveUnderADaemon(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	l.attach(s, "net0", ModeAuto)
	l.watch(s)
	_, err := Remove(l.root)
	must(t, err)
	if all, err := s.Attachments(); err != nil || len(all) != 0 {
		t.Errorf("attachments %+v, %v", all, err)
	}
	if id, _ := l.program("net0"); id != 0 {
		t.Errorf("net0 has program %d", id)
	}
	if _, err := s.Attach("net0", ModeAuto); err == nil || !strings.Contains(err.Error(), "pin") {
		t.Errorf("attach to a removed set: %v", err)
	}
	if id, _ := l.program("net0"); id != 0 {
		t.Errorf("a failed attachment left program %d", id)
	}
}

func TestRemoveRefusesAnotherFilesystem(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(dir+"/1", 0o700))
	if _, err := Remove(dir); !errors.Is(err, ErrNoBPFFS) {
		t.Errorf("remove: %v", err)
	}
	if !exists(dir + "/1") {
		t.Error("a folder that is not Levee's was removed")
	}
}
