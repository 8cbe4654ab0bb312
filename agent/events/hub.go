package events

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"slices"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// What is kept, and for whom.
const (
	keepDecisions = 8192
	keepDrops     = 4096
	maxReaders    = 64 // from other hosts, in all; on this host there may be as many again
	maxEach       = 16 // of one actor
	part          = 256
)

// Hub keeps the last decisions and the last drops, apart: no flood pushes a decision out. It is safe
// for concurrent use.
type Hub struct {
	run string

	mu        sync.Mutex
	last      uint64 // number of an event
	decisions ring
	drops     ring
	wake      chan struct{} // closed when something has happened; nil: nobody waits
	readers   map[string]int
	reading   map[bool]int // by whether they are on this host: whoever reads from others takes no place from those
}

// ring is the last events of a kind, their numbers growing.
type ring struct {
	events    []state.Event
	next      uint64 // how many there have been
	forgotten uint64 // number of the last one that made room
}

// New returns a Hub of nothing.
func New() *Hub {
	var run [6]byte
	_, _ = rand.Read(run[:]) // it never fails
	return &Hub{run: hex.EncodeToString(run[:]), decisions: ring{events: make([]state.Event, keepDecisions)},
		drops: ring{events: make([]state.Event, keepDrops)}, readers: map[string]int{}, reading: map[bool]int{}}
}

// Publish tells of something that has happened.
func (h *Hub) Publish(e state.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.last++
	e.ID = state.EventID{Run: h.run, Number: h.last}
	r := &h.decisions
	if e.Kind == state.EventDrop {
		r = &h.drops
	}
	at := &r.events[r.next%uint64(len(r.events))]
	r.forgotten = at.ID.Number
	*at = e
	r.next++
	if h.wake != nil {
		close(h.wake)
		h.wake = nil
	}
}

// Reader follows a Hub. It is for one goroutine.
type Reader struct {
	hub    *Hub
	filter state.EventFilter
	actor  string
	here   bool
	at     uint64 // number of the last event that was looked at
	rings  []place
	gap    *state.LostEvents // to be told
}

// place is how far a reader is in a ring: so many of its events it has seen, or missed.
type place struct {
	*ring
	seen uint64
}

// Open begins to read behind the event that the filter names, or from now on. Returns a
// *state.Error if there are too many readers.
func (h *Hub) Open(by state.Actor, f state.EventFilter) (*Reader, error) {
	actor, here := by.String(), by.Kind == state.ActorPeer || by.Kind == state.ActorDaemon
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reading[here] >= maxReaders || h.readers[actor] >= maxEach {
		return nil, &state.Error{Code: state.CodeLimited, Detail: "there are too many readers of events; close one, or come again later"}
	}
	h.reading[here]++
	h.readers[actor]++
	r := &Reader{hub: h, filter: f, actor: actor, here: here, at: h.last}
	switch {
	case f.After == state.EventID{}:
	case f.After.Run != h.run || f.After.Number > h.last:
		// What came before its beginning is lost, what is kept since is not.
		r.at, r.gap = 0, &state.LostEvents{Why: "the daemon has started again since"}
	default:
		r.at = f.After.Number
	}
	for kind, g := range map[state.EventKind]*ring{state.EventDecision: &h.decisions, state.EventDrop: &h.drops} {
		if len(f.Kinds) > 0 && !slices.Contains(f.Kinds, kind) {
			continue
		}
		r.rings = append(r.rings, place{g, g.after(r.at)})
		if g.forgotten > r.at && r.gap == nil {
			r.gap = &state.LostEvents{Why: "more has happened since than is kept"}
		}
	}
	return r, nil
}

// Close ends reading.
func (r *Reader) Close() {
	r.hub.mu.Lock()
	defer r.hub.mu.Unlock()
	r.hub.reading[r.here]--
	if r.hub.readers[r.actor]--; r.hub.readers[r.actor] == 0 {
		delete(r.hub.readers, r.actor)
	}
}

// At is the place that the reader has come to, also if none of the events there were asked for.
func (r *Reader) At() state.EventID { return state.EventID{Run: r.hub.run, Number: r.at} }

// Next returns the next events that are asked for, as soon as there is one. It returns none when it
// was told to wait no longer, and an error when the context has ended.
func (r *Reader) Next(ctx context.Context, wait <-chan time.Time) ([]state.Event, error) {
	for {
		events, wake := r.take()
		if len(events) > 0 {
			return events, nil
		}
		if wake == nil {
			continue
		}
		select {
		case <-wake:
		case <-wait:
			return nil, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// take returns events that are there, or what tells of the next one. Neither: there may be more.
func (r *Reader) take() ([]state.Event, <-chan struct{}) {
	h := r.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []state.Event
	if lost := r.missed(); lost != nil {
		out = append(out, state.Event{ID: r.At(), Time: time.Now().UTC(), Kind: state.EventLost, Lost: lost})
	}
	looked := 0
	for ; looked < part; looked++ {
		e := r.first()
		if e == nil {
			r.at = h.last
			break
		}
		if r.at = e.ID.Number; r.filter.Wants(e) {
			out = append(out, *e)
		}
	}
	if len(out) > 0 || looked == part {
		return out, nil
	}
	if h.wake == nil {
		h.wake = make(chan struct{})
	}
	return nil, h.wake
}

// missed tells what was overwritten before the reader has seen it, and moves it on.
func (r *Reader) missed() *state.LostEvents {
	lost := r.gap
	r.gap = nil
	for i := range r.rings {
		p := &r.rings[i]
		if oldest := p.oldest(); p.seen < oldest {
			if lost == nil {
				lost = &state.LostEvents{Why: "the reader is too slow"}
			}
			lost.Events += oldest - p.seen
			p.seen = oldest
		}
	}
	return lost
}

// first is the first event that was not seen, and is now; nil if there is none.
func (r *Reader) first() *state.Event {
	var from *place
	var found *state.Event
	for i := range r.rings {
		p := &r.rings[i]
		if p.seen == p.next {
			continue
		}
		if e := p.event(p.seen); found == nil || e.ID.Number < found.ID.Number {
			from, found = p, e
		}
	}
	if from != nil {
		from.seen++
	}
	return found
}

func (g *ring) event(n uint64) *state.Event { return &g.events[n%uint64(len(g.events))] }

// oldest is the first event that is kept.
func (g *ring) oldest() uint64 { return g.next - min(g.next, uint64(len(g.events))) }

// after is the first event that is kept and whose number is behind one.
func (g *ring) after(number uint64) uint64 {
	from, to := g.oldest(), g.next
	for from < to {
		middle := from + (to-from)/2
		if g.event(middle).ID.Number > number {
			to = middle
		} else {
			from = middle + 1
		}
	}
	return from
}
