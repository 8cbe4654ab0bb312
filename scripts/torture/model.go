package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// slack is how far the clocks of who asks and of who answers may be apart when a ban ends by itself.
const slack = 50 * time.Millisecond

// belief is what must hold of a prefix, after all that was acknowledged.
type belief struct {
	banned  bool
	unknown bool          // the last change was not answered: both are right, until somebody looks
	ends    time.Duration // when a ban ends by itself, by CLOCK_MONOTONIC; 0: never
}

// allows tells whether a verdict is right at a time.
func (b belief) allows(banned bool, at time.Duration) bool {
	switch {
	case b.unknown:
		return true
	case !b.banned:
		return !banned
	case b.ends == 0 || at < b.ends-slack:
		return banned
	case at > b.ends+slack:
		return !banned
	}
	return true // it ends about now
}

func (b belief) String() string {
	switch {
	case b.unknown:
		return "unknown"
	case !b.banned:
		return "not banned"
	case b.ends == 0:
		return "banned"
	}
	return fmt.Sprintf("banned for another %s", b.ends-monotonic())
}

// load is what changes bans while the daemon is tortured. Each worker has prefixes of its own, so
// that it knows what must hold of them.
type load struct {
	client  *client.Client
	workers []*worker
	toggles []*toggle
	stop    atomic.Bool
	done    sync.WaitGroup

	acknowledged, refused, unanswered atomic.Int64
	mu                                sync.Mutex
	refusals                          map[string]int // in words
	contradictions                    []string
}

type worker struct {
	*load
	number   int
	prefixes []netip.Prefix
	believed map[netip.Prefix]*belief
	random   *rand.Rand
}

func newLoad(c *client.Client, seed uint64, workers, prefixes int) *load {
	l := &load{client: c, refusals: map[string]int{}}
	for n := range workers {
		w := &worker{load: l, number: n, believed: map[netip.Prefix]*belief{}, random: rand.New(rand.NewPCG(seed, uint64(n)))}
		for i := range prefixes {
			var p netip.Prefix
			switch i % 4 { // every table and length class has its part
			case 0:
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(n), byte(i)}), 32)
			case 1:
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(n<<3 | i>>5), byte(i << 3)}), 27).Masked()
			case 2:
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 0x99, byte(n), 0, byte(i), 15: 1}), 128)
			case 3:
				p = netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 0x98, byte(n), 0, byte(i)}), 64)
			}
			if _, twice := w.believed[p]; twice {
				continue
			}
			w.prefixes = append(w.prefixes, p)
			w.believed[p] = &belief{}
		}
		l.workers = append(l.workers, w)
	}
	l.toggles = toggles(c)
	return l
}

// run lets all workers and the keepers work until halt.
func (l *load) run(ctx context.Context) {
	l.stop.Store(false)
	for _, w := range l.workers {
		l.done.Go(func() {
			for !l.stop.Load() && ctx.Err() == nil && w.step(ctx) {
			}
		})
	}
	for _, source := range bannedSources {
		l.done.Go(func() { l.keepBanned(ctx, source) })
	}
	l.done.Go(func() {
		for i := 0; !l.stop.Load() && ctx.Err() == nil && l.turn(ctx, l.toggles[i%len(l.toggles)]); i++ {
		}
	})
}

// halt waits for the workers' last answers, which may never come if the daemon is dead.
func (l *load) halt() {
	l.stop.Store(true)
	l.done.Wait()
}

// step changes a few prefixes by one request. It tells whether the daemon answered.
func (w *worker) step(ctx context.Context) bool {
	some := make([]netip.Prefix, 1+w.random.IntN(4))
	for i := range some {
		some[i] = w.prefixes[w.random.IntN(len(w.prefixes))]
	}
	slices.SortFunc(some, netip.Prefix.Compare)
	some = slices.Compact(some)
	if w.random.IntN(2) == 0 {
		return w.unban(ctx, some)
	}
	var length time.Duration
	switch w.random.IntN(4) {
	case 0:
		length = time.Duration(200+w.random.IntN(1500)) * time.Millisecond
	case 1:
		length = time.Hour
	}
	return w.ban(ctx, some, length)
}

func (w *worker) ban(ctx context.Context, some []netip.Prefix, length time.Duration) bool {
	r := state.BanRequest{}
	for _, p := range some {
		item := state.BanItem{Prefix: p.String(), Origin: "api:torture", Reason: "torture"}
		if length > 0 {
			item.For = length.String()
		}
		r.Bans = append(r.Bans, item)
	}
	answer, err := w.client.Ban(ctx, r)
	at := monotonic()
	return w.learn(some, answer, err, func(i int, b *belief) {
		*b = belief{banned: true}
		if length > 0 {
			// The answer's time is the wall clock's; what is left by it is left by the other, too.
			b.ends = at + time.Until(answer.Bans[i].Expires)
		}
	})
}

func (w *worker) unban(ctx context.Context, some []netip.Prefix) bool {
	r := state.UnbanRequest{Origin: "api:torture"}
	for _, p := range some {
		r.Prefixes = append(r.Prefixes, p.String())
	}
	answer, err := w.client.Unban(ctx, r)
	return w.learn(some, answer, err, func(_ int, b *belief) { *b = belief{} })
}

// learn takes an answer for a promise. A refusal promises that all is as it was.
func (w *worker) learn(some []netip.Prefix, answer state.BanResponse, err error, granted func(int, *belief)) bool {
	switch asked(err) {
	case refused:
		w.note(err.Error())
		return true
	case notAnswered:
		w.unanswered.Add(1)
		for _, p := range some {
			w.believed[p].unknown = true
		}
		return false
	case answered:
	}
	for i, p := range some {
		b, result := w.believed[p], answer.Bans[i]
		switch {
		case result.Status != state.StatusRefused:
			granted(i, b)
		case result.Error.Code != state.CodeNotFound:
			w.note(result.Error.Error())
		case !b.allows(false, monotonic()):
			w.contradict(fmt.Sprintf("the daemon says that %s is not banned; it is %s", p, b))
		default:
			*b = belief{}
		}
	}
	w.acknowledged.Add(1)
	return true
}

// reply is what came of asking.
type reply int

const (
	answered    reply = iota
	refused           // and nothing was changed, that is a promise, too
	notAnswered       // it may or may not have been done: also where nobody was there at the last try
)

func asked(err error) reply {
	if err == nil {
		return answered
	}
	if _, ok := errors.AsType[*client.Error](err); ok {
		return refused
	}
	return notAnswered
}

func (l *load) contradict(what string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.contradictions = append(l.contradictions, what)
}

// contradicted returns answers that were at odds with earlier ones, once.
func (l *load) contradicted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.contradictions
	l.contradictions = nil
	return out
}

// reset forgets what was refused so far.
func (l *load) reset() {
	l.refused.Store(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.refusals)
}

// saw tells whether a refusal said certain words.
func (l *load) saw(words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for text := range l.refusals {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}

// forget is for a state that is new: nothing is banned, and no setting made.
func (l *load) forget() {
	for _, w := range l.workers {
		for _, b := range w.believed {
			*b = belief{}
		}
	}
	for _, t := range l.toggles {
		t.believed = belief{}
	}
}

func (l *load) note(refusal string) {
	l.refused.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusals[refusal]++
}

// keepBanned changes the claims on a source without pause, and never lets it be without one: two
// origins take turns, and one takes its word back only while the other's is known to hold.
func (l *load) keepBanned(ctx context.Context, source netip.Addr) {
	origins := []state.Origin{"operator", "api:torture-keeper"}
	ban := func(o state.Origin) bool {
		answer, err := l.client.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: source.String(), Origin: o, For: "1h", Reason: "kept"}}})
		return err == nil && answer.Done == 1
	}
	for i := 0; !l.stop.Load() && ctx.Err() == nil; i++ {
		one, other := origins[i%2], origins[1-i%2]
		if !ban(one) || !ban(other) {
			return // the daemon is dying, or refuses; what was there holds
		}
		_, _ = l.client.Unban(ctx, state.UnbanRequest{Prefixes: []string{source.String()}, Origin: one})
	}
}

// inForce compares what must hold with what the live program does.
func (l *load) inForce(w *world) (wrong []string, err error) {
	prog, err := w.program()
	if err != nil {
		return nil, err
	}
	defer prog.Close()
	for _, wk := range l.workers {
		for p, b := range wk.believed {
			drops, err := w.verdict(prog, p.Addr())
			if err != nil {
				return nil, err
			}
			if !b.allows(drops, monotonic()) {
				wrong = append(wrong, fmt.Sprintf("the kernel drops %s: %v; it is %s", p, drops, b))
			}
		}
	}
	return wrong, nil
}

// inState compares what must hold with what the daemon lists, and takes for the truth what it says of
// what was not answered.
func (l *load) inState(ctx context.Context) (wrong []string, err error) {
	listed := map[netip.Prefix]state.Claim{}
	for after := ""; ; {
		page, err := l.client.Bans(ctx, state.Filter{Origin: "api:torture", After: after})
		if err != nil {
			return nil, fmt.Errorf("list the bans: %w", err)
		}
		for _, c := range page.Bans {
			listed[c.Prefix] = c
		}
		if after = page.Next; after == "" {
			break
		}
	}
	at := monotonic()
	for _, wk := range l.workers {
		for p, b := range wk.believed {
			claim, banned := listed[p]
			if !b.allows(banned, at) {
				wrong = append(wrong, fmt.Sprintf("the daemon lists %s: %v; it is %s", p, banned, b))
				b.unknown = true // once said, what follows is judged by what is
			}
			if b.unknown {
				// A ban that has just ended counts as one that ends now: the kernel's clock ticks.
				*b = belief{banned: true, ends: at}
				if banned {
					b.ends = 0
				}
				if banned && !claim.Expires.IsZero() {
					b.ends = at + time.Until(claim.Expires)
				}
			}
			delete(listed, p)
		}
	}
	for p := range listed {
		wrong = append(wrong, fmt.Sprintf("the daemon lists %s, which nobody banned", p))
	}
	for _, t := range l.toggles {
		on, err := t.is(ctx)
		if err != nil {
			return nil, err
		}
		if !t.believed.unknown && t.believed.banned != on {
			wrong = append(wrong, fmt.Sprintf("%s is on: %v; it was last %v", t.name, on, t.believed.banned))
		}
		t.believed = belief{banned: on}
	}
	return wrong, nil
}
