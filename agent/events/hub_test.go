package events

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func decision(subject string) state.Event {
	return state.Event{Kind: state.EventDecision, Decision: &state.Decision{About: state.AboutBan, Subject: subject}}
}

func token(name ...any) state.Actor {
	return state.Actor{Kind: state.ActorToken, Name: fmt.Sprint(name...)}
}

func drop() state.Event { return state.Event{Kind: state.EventDrop, Drop: &state.EventView{}} }

// read takes what is there.
func read(t *testing.T, r *Reader) (out []state.Event) {
	t.Helper()
	over := make(chan time.Time)
	close(over)
	for {
		events, err := r.Next(t.Context(), over)
		if err != nil {
			t.Fatal(err)
		}
		if len(events) == 0 {
			return out
		}
		out = append(out, events...)
	}
}

func open(t *testing.T, h *Hub, f state.EventFilter) *Reader {
	t.Helper()
	r, err := h.Open(state.Operator("me"), f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func show(events []state.Event) string {
	var out []string
	for _, e := range events {
		switch e.Kind {
		case state.EventLost:
			out = append(out, fmt.Sprint("lost ", e.Lost.Events))
		default:
			out = append(out, fmt.Sprint(e.Kind[:2], e.ID.Number))
		}
	}
	return strings.Join(out, " ")
}

// A reader sees what happens from then on, in order, of the kinds and prefixes that it asked for.
func TestRead(t *testing.T) {
	h := New()
	h.Publish(decision("192.0.2.1"))
	all, drops := open(t, h, state.EventFilter{}), open(t, h, state.EventFilter{Kinds: []state.EventKind{state.EventDrop}})
	h.Publish(decision("192.0.2.2"))
	h.Publish(drop())
	h.Publish(drop())
	h.Publish(decision("192.0.2.3"))
	if got := show(read(t, all)); got != "de2 dr3 dr4 de5" {
		t.Error(got)
	}
	if got := show(read(t, drops)); got != "dr3 dr4" || drops.At().Number != 5 {
		t.Error(got, drops.At())
	}
	if got := show(read(t, all)); got != "" {
		t.Error(got)
	}
}

// A reader that comes back goes on behind what it had.
func TestResume(t *testing.T) {
	h := New()
	for range 5 {
		h.Publish(decision("x"))
	}
	at := state.EventID{Run: h.run, Number: 3}
	if got := show(read(t, open(t, h, state.EventFilter{After: at}))); got != "de4 de5" {
		t.Error(got)
	}
	// Of another run of the daemon: what there is, and that some is lost.
	if got := show(read(t, open(t, h, state.EventFilter{After: state.EventID{Run: "ab", Number: 3}}))); got != "lost 0 de1 de2 de3 de4 de5" {
		t.Error(got)
	}
	if got := show(read(t, open(t, h, state.EventFilter{After: state.EventID{Run: h.run, Number: 99}}))); !strings.HasPrefix(got, "lost 0 de1") {
		t.Error(got)
	}
	for range keepDecisions {
		h.Publish(decision("x"))
	}
	got := read(t, open(t, h, state.EventFilter{After: at}))
	if len(got) != 1+keepDecisions || got[0].Kind != state.EventLost || got[1].ID.Number != 6 {
		t.Error(len(got), show(got[:2]))
	}
	// One that was there until just before the first that is kept has lost nothing.
	if got := read(t, open(t, h, state.EventFilter{After: state.EventID{Run: h.run, Number: 5}})); len(got) != keepDecisions {
		t.Error(len(got), show(got[:2]))
	}
}

// A reader that is too slow is told how many it has missed, a flood of drops takes no decision from
// anybody, and nobody who tells waits for a reader.
func TestSlow(t *testing.T) {
	h := New()
	slow, calm := open(t, h, state.EventFilter{}), open(t, h, state.EventFilter{Kinds: []state.EventKind{state.EventDecision}})
	h.Publish(decision("a"))
	for range 3 * keepDrops {
		h.Publish(drop())
	}
	h.Publish(decision("b"))
	got := read(t, slow)
	if len(got) != 1+1+keepDrops+1 || got[0].Kind != state.EventLost || got[0].Lost.Events != 2*keepDrops || got[1].ID.Number != 1 || got[len(got)-1].Kind != state.EventDecision {
		t.Error(len(got), show(got[:3]))
	}
	if !slices.IsSortedFunc(got[1:], func(a, b state.Event) int { return int(a.ID.Number) - int(b.ID.Number) }) {
		t.Error("not in order")
	}
	if got := show(read(t, calm)); got != fmt.Sprintf("de1 de%d", 3*keepDrops+2) {
		t.Error(got)
	}
}

// There are so many readers and no more, and one that closes makes room.
func TestBounds(t *testing.T) {
	h := New()
	var readers []*Reader
	for i := range maxReaders {
		r, err := h.Open(token("actor", i/maxEach), state.EventFilter{})
		if err != nil {
			t.Fatal(i, err)
		}
		readers = append(readers, r)
	}
	refused := func(actor string) {
		t.Helper()
		_, err := h.Open(token(actor), state.EventFilter{})
		if e, ok := errors.AsType[*state.Error](err); !ok || e.Code != state.CodeLimited {
			t.Errorf("%s: %v", actor, err)
		}
	}
	refused("other")
	// Whoever is on the host finds a place, if not any number of them.
	root := state.Actor{Kind: state.ActorPeer, Name: "root", ID: "0"}
	for i := range maxEach + 1 {
		r, err := h.Open(root, state.EventFilter{})
		if (err == nil) != (i < maxEach) {
			t.Fatal(i, err)
		}
		if err == nil {
			readers = append(readers, r)
		}
	}
	readers[0].Close()
	refused("actor1")
	r, err := h.Open(token("actor0"), state.EventFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range append(readers[1:], r) {
		r.Close()
	}
	if len(h.readers) != 0 || h.reading[true] != 0 || h.reading[false] != 0 {
		t.Error(h.readers, h.reading)
	}
}

// A reader that waits is woken, by many that tell at once, and by its context.
func TestWait(t *testing.T) {
	h := New()
	var group sync.WaitGroup
	for range 8 {
		r := open(t, h, state.EventFilter{})
		group.Go(func() {
			for n := 0; n < 400; {
				events, err := r.Next(t.Context(), nil)
				if err != nil {
					t.Error(err)
					return
				}
				n += len(events)
			}
		})
	}
	for range 4 {
		group.Go(func() {
			for range 100 {
				h.Publish(decision("x"))
			}
		})
	}
	group.Wait()
	synctest.Test(t, func(t *testing.T) {
		r := open(t, New(), state.EventFilter{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := r.Next(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

func BenchmarkPublish(b *testing.B) {
	h := New()
	for i := range maxEach {
		r, err := h.Open(token(i), state.EventFilter{})
		if err != nil {
			b.Fatal(err)
		}
		defer r.Close()
	}
	e := drop()
	for b.Loop() {
		h.Publish(e)
	}
}
