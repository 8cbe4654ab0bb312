package loader

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/levee-xdp/levee/bpf"
)

// The schema of this program, and of the one in next.
var old, later = strconv.Itoa(bpf.Schema), strconv.Itoa(bpf.Schema + 1)

// next is the config of a program of the next schema: it has other sizes, one table more, and one that
// holds something else.
func (l *lab) next() Config {
	l.Helper()
	c := l.config()
	spec, err := bpf.LoadLevee()
	must(l, err)
	spec.Maps["extra"] = &ebpf.MapSpec{Name: "extra", Type: ebpf.Hash, KeySize: 4, ValueSize: 8, MaxEntries: 16}
	c.Spec, c.schema = spec, bpf.Schema+1
	c.Sizes.Ban4Entries *= 2
	return c
}

// A newer program with other tables takes over, and the older one after it again: without a gap, with
// the counters and slots that there were, and without a trace of the set before.
func TestSchemaChangeAndBack(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	s := l.open()
	a, b := l.attach(s, "net0", ModeAuto), l.attach(s, "net1", ModeGeneric)
	l.wantShield("net1", b.Slot)
	counters := mapID(t, s.Maps()[bpf.LeveeMapCounters])
	must(t, s.Close())
	gaps := l.detectGaps("net0")
	l.eventually("there is traffic", func() bool { return l.packets(a.Slot, bpf.ReasonMartian) > 10 })

	for round, step := range []struct {
		config     Config
		dir, other string
	}{
		{l.next(), later, old},
		{l.config(), old, later},
		{l.next(), later, old},
	} {
		before, _ := l.program("net0")
		s := l.openWith(step.config)
		differs := fmt.Sprintf("the pinned set has schema %s, this program has %s", step.other, step.dir)
		if adopted, why := s.Adopted(); adopted || why != differs {
			t.Errorf("%d: adopted %v, %q", round, adopted, why)
		}
		if id, _ := l.program("net0"); id != before {
			t.Errorf("%d: the program changed before the upgrade", round)
		}
		if !exists(l.root + "/" + step.other) {
			t.Errorf("%d: the old set went before the upgrade", round)
		}
		if id := mapID(t, s.Maps()[bpf.LeveeMapCounters]); id != counters {
			t.Errorf("%d: the counters start afresh", round)
		}
		changed, err := s.Upgrade()
		must(t, err)
		if len(changed) != 2 {
			t.Fatalf("%d: changed %+v", round, changed)
		}
		for i, was := range []Attachment{a, b} {
			if now := changed[i]; now.LinkID != was.LinkID || now.Slot != was.Slot || now.Mode != was.Mode || now.ProgramID == was.ProgramID {
				t.Errorf("%d: %+v was %+v", round, now, was)
			}
		}
		l.programGone(before)
		var meta bpf.Meta
		must(t, s.Maps()[bpf.LeveeMapMeta].Lookup(uint32(0), &meta))
		if meta.Schema != max(step.config.schema, bpf.Schema) {
			t.Errorf("%d: it is described as of schema %d", round, meta.Schema)
		}
		want := []string{"links", "programs", step.dir}
		entries, err := os.ReadDir(l.root)
		must(t, err)
		for _, e := range entries {
			if !slices.Contains(want, e.Name()) {
				t.Errorf("%d: %s is still pinned", round, e.Name())
			}
		}
		if exists(mapPin(l.root+"/"+step.dir, "extra")) != (step.dir == later) {
			t.Errorf("%d: pinned %v", round, l.tree())
		}
		must(t, s.Close())
		s = l.openWith(step.config)
		if adopted, why := s.Adopted(); !adopted {
			t.Errorf("%d: not adopted by the next of its kind: %s", round, why)
		}
		if again, err := s.Upgrade(); err != nil || len(again) != 0 {
			t.Errorf("%d: upgraded again: %+v, %v", round, again, err)
		}
		must(t, s.Close())
	}
	if sent, passed := gaps.stop(); passed != 0 || sent < 100 {
		t.Errorf("%d of %d frames met no shield", passed, sent)
	}
}

// What an operator has let pass is not dropped by a program of another schema.
func TestSchemaChangeInPanic(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	l.attach(s, "net0", ModeAuto)
	must(t, SetPanic(l.root, true))
	must(t, s.Close())
	for _, c := range []Config{l.next(), l.config()} {
		s := l.openWith(c)
		_, err := s.Upgrade()
		must(t, err)
		if on, err := Panic(l.root); err != nil || !on {
			t.Errorf("the panic switch did not survive: %v, %v", on, err)
		}
		must(t, s.Close())
	}
}

// A newer program that is killed before its upgrade leaves the older one as it was, and one that is
// killed after it swapped the sets is followed by either.
func TestSchemaChangeInterrupted(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())
	must(t, l.openWith(l.next()).Close()) // never upgraded
	if id, _ := l.program("net0"); id != a.ProgramID {
		t.Error("the program changed")
	}
	s = l.open()
	if adopted, why := s.Adopted(); !adopted {
		t.Error(why)
	}
	if changed, err := s.Upgrade(); err != nil || len(changed) != 0 {
		t.Errorf("%+v, %v", changed, err)
	}
	if exists(l.root + "/" + later) {
		t.Errorf("left %v", l.tree())
	}
	l.wantShield("net0", a.Slot)
	must(t, s.Close())

	// Killed between the links' update and the removal of the old set.
	s = l.openWith(l.next())
	live, table, err := s.settle()
	must(t, err)
	changes, err := s.changes(live, table)
	must(t, err)
	must(t, s.replace(changes))
	closeChanges(changes)
	must(t, s.Close())
	if !exists(l.root+"/"+old) || !exists(l.root+"/"+later) {
		t.Fatalf("pinned %v", l.tree())
	}
	s = l.open()
	if changed, err := s.Upgrade(); err != nil || len(changed) != 1 || changed[0].LinkID != a.LinkID {
		t.Errorf("back: %+v, %v", changed, err)
	}
	if exists(l.root + "/" + later) {
		t.Errorf("left %v", l.tree())
	}
	l.wantShield("net0", a.Slot)
}

// A set that is to replace one of another schema says that it can't read that one, and leaves no trace of
// itself if it is not put to use.
func TestSchemaChangeGivenUp(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())
	before := l.tree()
	for range 2 {
		s = l.openWith(l.next())
		maps, err := s.Replaced()
		var other *SchemaError
		if !errors.As(err, &other) || other.Have != old || other.Want != bpf.Schema+1 || maps != nil {
			t.Errorf("%v, %v", maps, err)
		}
		must(t, s.Close())
		if after := l.tree(); !reflect.DeepEqual(after, before) {
			t.Errorf("pinned %v, was %v", after, before)
		}
		if id, _ := l.program("net0"); id != a.ProgramID {
			t.Error("the program changed")
		}
		l.wantShield("net0", a.Slot)
	}
	s = l.open()
	if adopted, why := s.Adopted(); !adopted {
		t.Error(why)
	}
	must(t, s.Close())
}
