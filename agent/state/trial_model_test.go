package state

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// piles is the reference for trials: of each thing what was said of it, the newest last. The first is
// what is to stay, the others are on trial.
type piles map[Thing][]said

type said struct {
	trial string // empty: on none
	value value
}

// value is what a thing says; empty: there is no such thing.
type value struct {
	text  string
	until uint64 // 0: forever
}

func (p piles) now(thing Thing, at uint64) string {
	v := p[thing][len(p[thing])-1].value
	if v.until != 0 && v.until <= at {
		return ""
	}
	return v.text
}

func (p piles) plain(thing Thing, v value) { p[thing] = []said{{"", v}} }

func (p piles) try(id string, thing Thing, v value) { p[thing] = append(p[thing], said{id, v}) }

func (p piles) confirm(id string) {
	for thing, pile := range p {
		if i := slices.IndexFunc(pile, func(s said) bool { return s.trial == id }); i >= 0 {
			p[thing] = append([]said{{"", pile[i].value}}, pile[i+1:]...)
		}
	}
}

func (p piles) takeBack(id string) {
	for thing, pile := range p {
		p[thing] = slices.DeleteFunc(slices.Clone(pile), func(s said) bool { return s.trial == id })
	}
}

func (p piles) trials() (ids []string) {
	of := map[string]bool{}
	for _, pile := range p {
		for _, s := range pile {
			of[s.trial] = true
		}
	}
	delete(of, "")
	return slices.Sorted(maps.Keys(of))
}

var modelThings = []Thing{thingOf("192.0.2.1/32", "api:x"), thingOf("192.0.2.1/32", OriginOperator), thingOf("2001:db8::/48", "api:x"),
	{About: AboutAllow, Name: "198.51.100.1/32"}, {About: AboutLimit, Name: "web0"}}

// say has a thing say something; empty: nothing any more.
func (h *harness) say(thing Thing, text string, lasts time.Duration) error {
	h.clock.advance(1) // no two claims are made at once
	var out []Outcome
	var err error
	switch thing.About {
	case AboutBan:
		p := Proposal{Prefix: netip.MustParsePrefix(thing.Name), Origin: thing.Origin, Reason: text, For: lasts, Remove: text == ""}
		out, err = h.Propose([]Proposal{p})
		if err == nil && out[0].Error != nil && !IsNotFound(out[0].Error) {
			err = out[0].Error
		}
	case AboutAllow:
		p := AllowProposal{AllowSpec: AllowSpec{Comment: text}, For: lasts, Remove: text == ""}
		p.Prefix.Prefix = netip.MustParsePrefix(thing.Name)
		_, err = h.ProposeAllows([]AllowProposal{p})
	case AboutLimit:
		if text == "" {
			if err = h.RemoveLimit(thing.Name); IsNotFound(err) {
				err = nil
			}
			break
		}
		n := uint64(0)
		_, _ = fmt.Sscan(text[1:], &n)
		_, err = h.SetLimit(thing.Name, LimitSpec{Services: []Service{{Protocol: 6, Port: uint16(thing.Name[3])}}, Packets: &Threshold{Rate: Rate{Count: n, Per: time.Second}}}, "root")
	default:
		panic("the model has no " + thing.About)
	}
	return err
}

// says is what a thing says.
func (h *harness) says(thing Thing) string {
	switch thing.About {
	case AboutBan:
		for c := range h.All(thing.Origin) {
			if c.Prefix.String() == thing.Name {
				return c.Reason
			}
		}
	case AboutAllow:
		for _, a := range h.Allows() {
			if a.Prefix.String() == thing.Name && a.Until() > h.clock.Monotonic() {
				return a.Comment
			}
		}
	case AboutLimit:
		if l, ok := h.Limit(thing.Name); ok {
			return fmt.Sprintf("v%d", l.Packets.Rate.Count)
		}
	default:
		panic("the model has no " + thing.About)
	}
	return ""
}

// Whatever is tried, confirmed, taken back, changed plainly and removed, in whatever order, with restarts
// and crashes between: what is in force is what the reference says.
func TestTrialModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := &harness{TB: t, clock: newFakeClock(), path: t.TempDir() + "/state.db"}
		h.reopen()
		defer func() { h.Close() }()
		p := piles{}
		for _, thing := range modelThings {
			p.plain(thing, value{})
		}
		n := uint64(0)
		some := rapid.SliceOfNDistinct(rapid.SampledFrom(modelThings), 1, 4, func(t Thing) Thing { return t })
		next := func(thing Thing) (value, time.Duration) {
			n++
			v := value{text: fmt.Sprintf("v%d", n)}
			lasts := time.Duration(0)
			if thing.About != AboutLimit && rapid.IntRange(0, 3).Draw(rt, "timed") == 0 {
				lasts = time.Duration(rapid.IntRange(1, 90).Draw(rt, "lasts")) * time.Second
				v.until = h.clock.Monotonic() + 1 + uint64(lasts)
			}
			return v, lasts
		}
		check := func(err error) {
			if err != nil {
				rt.Fatal(err)
			}
		}
		pick := func() string {
			ids := p.trials()
			if len(ids) == 0 {
				return ""
			}
			return rapid.SampledFrom(ids).Draw(rt, "trial")
		}
		actions := map[string]func(){
			"try": func() {
				things := some.Draw(rt, "things")
				tr, err := h.BeginTrial(Attempt{By: root, About: AboutBan, For: Duration(LongestTrial), Things: things})
				if conflicts(err) {
					return
				}
				check(err)
				if rapid.IntRange(0, 5).Draw(rt, "crash") == 0 { // before the change is made
					h.reopen()
					for _, thing := range things {
						p.try(tr.ID, thing, p[thing][len(p[thing])-1].value)
					}
					return
				}
				made := things[:rapid.IntRange(0, len(things)).Draw(rt, "made")] // the others are refused
				for _, thing := range made {
					v, lasts := next(thing)
					check(h.say(thing, v.text, lasts))
					p.try(tr.ID, thing, v)
				}
				check(h.Trim(tr.ID, made))
			},
			"confirm": func() {
				id := pick()
				if id == "" {
					return
				}
				_, err := h.Confirm(id)
				check(err)
				p.confirm(id)
			},
			"take back": func() {
				id := pick()
				if id == "" {
					return
				}
				for range rapid.IntRange(1, 2).Draw(rt, "times") {
					_, err := h.Undo(id)
					check(err)
					if rapid.Bool().Draw(rt, "crash") {
						h.reopen()
					}
				}
				check(h.EndTrial(id))
				p.takeBack(id)
			},
			"change": func() {
				things := some.Draw(rt, "things")
				for _, thing := range things {
					v, lasts := next(thing)
					check(h.say(thing, v.text, lasts))
					p.plain(thing, v)
				}
				check(h.Release(things))
			},
			"remove": func() {
				thing := rapid.SampledFrom(modelThings).Draw(rt, "thing")
				check(h.say(thing, "", 0))
				gone := []Thing{thing}
				if thing.About == AboutBan && rapid.Bool().Draw(rt, "all") {
					prefix := netip.MustParsePrefix(thing.Name)
					_, err := h.Propose([]Proposal{{Prefix: prefix, Remove: true, All: true}})
					check(err)
					gone = append(h.HeldClaims(prefix, ""), thingOf(thing.Name, OriginOperator), thingOf(thing.Name, "api:x"))
				}
				for _, thing := range gone {
					p.plain(thing, value{})
				}
				check(h.Release(gone))
			},
			"restart": func() { h.reopen() },
			"wait": func() {
				h.clock.advance(time.Duration(rapid.IntRange(1, 40).Draw(rt, "seconds")) * time.Second)
				h.Sweep(1000)
			},
		}
		agree := func() {
			for _, thing := range modelThings {
				if got, want := h.says(thing), p.now(thing, h.clock.Monotonic()); got != want {
					rt.Fatalf("%v says %q, want %q", thing, got, want)
				}
			}
			var ids []string
			for _, tr := range h.Trials() {
				ids = append(ids, tr.ID)
			}
			slices.Sort(ids)
			if want := p.trials(); !slices.Equal(ids, want) {
				rt.Fatalf("on trial are %v, want %v", ids, want)
			}
		}
		kinds := slices.Concat(slices.Sorted(maps.Keys(actions)), []string{"try", "try", "take back"})
		for range rapid.IntRange(10, 60).Draw(rt, "steps") {
			actions[rapid.SampledFrom(kinds).Draw(rt, "action")]()
			agree()
		}
	})
}

// An actor finds room for so many trials, and others for theirs; root always finds some.
func TestTrialBounds(t *testing.T) {
	h := open(t)
	n := 0
	try := func(by Actor, things int) error {
		a := Attempt{By: by, About: AboutBan, What: "test", For: minute}
		for range things {
			n++
			a.Things = append(a.Things, thingOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32).String(), "api:x"))
		}
		if err := h.MayTry(by, things); err != nil {
			if _, err2 := h.BeginTrial(a); err2 == nil {
				t.Error("it was begun though it may not be")
			}
			return err
		}
		_, err := h.BeginTrial(a)
		return err
	}
	fill := func(by Actor, things int) (made int) {
		for try(by, things) == nil {
			made++
		}
		return made
	}
	named := func(i int) Actor {
		return Actor{Kind: ActorToken, Name: fmt.Sprintf("t%d", i), Scopes: []Scope{ScopeBan}}
	}
	if got := fill(named(0), 1); got != 8 {
		t.Errorf("one token began %d trials", got)
	}
	if err := try(named(0), 1); !conflicts(err) {
		t.Errorf("%v", err)
	}
	h.reopen()
	if err := try(named(0), 1); err == nil {
		t.Error("after a restart there is room again")
	}
	all := 8
	for i := 1; i < 20; i++ {
		all += fill(named(i), 1)
	}
	if all != 48 {
		t.Errorf("all but root began %d trials", all)
	}
	if got := fill(root, 1); got != 16 {
		t.Errorf("root began %d trials then", got)
	}
	h.confirm()
	// An unbelievable number of things in few trials.
	if got := fill(named(0), 4000); got != 2 {
		t.Errorf("one token began %d trials of 4000 things", got)
	}
	if got := fill(named(1), 5000); got != 1 {
		t.Errorf("another one began %d trials of 5000 things", got)
	}
	if got := fill(root, 6000); got != 1 {
		t.Errorf("root began %d trials of 6000 things", got)
	}
	if err := try(root, 1); err != nil {
		t.Error(err)
	}
}

// What is done with one of many things on trial costs as much as with few.
func TestTrialOfManyThings(t *testing.T) {
	h := open(t)
	var things []Thing
	for i := range 10_000 {
		things = append(things, thingOf(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32).String(), "api:x"))
	}
	for range 2 { // the second on top of the first
		if _, err := h.BeginTrial(Attempt{By: root, About: AboutBan, For: minute, Things: slices.Concat(things, things[:5])}); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(h.Held(append(things, thingOf("192.0.2.1/32", "api:x")))); got != len(things) {
		t.Errorf("%d are on trial", got)
	}
	if err := h.Release(things[:1]); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if got := h.Held(things); len(got) != len(things)-1 || slices.Contains(got, things[0]) {
		t.Errorf("%d are on trial", len(got))
	}
	h.confirm("t2")
	h.reopen()
	if h.OnTrial() || len(h.Trials()) != 0 {
		t.Error("the one below goes on")
	}
	if err := errors.Join(h.Release(things), h.EndTrial("t1"), h.Trim("t1", nil)); err != nil {
		t.Error(err)
	}
}

func conflicts(err error) bool { return err != nil && AsError(err, "").Code == CodeConflict }
