package audit

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/levee-xdp/levee/agent/state"
)

// How many refusals are written: of a kind from one address some at once and then one in a while,
// and of all together no more than one a second for long. The others are counted.
const (
	maxKinds  = 1024
	perKind   = 5
	perLogin  = 20 // of bad credentials, which are one kind
	kindEvery = 10 * time.Second
	allBurst  = 100
	allEvery  = time.Second
)

// authenticate is what was asked for by those of whom nobody knows who they are.
const authenticate = "authenticate"

// limiters are one for refusals of those who are known and one for all others: a flood of bad credentials
// from many addresses takes the budget of nobody who has good ones.
type limiters struct{ known, others *limiter }

func newLimiters() limiters { return limiters{newLimiter(), newLimiter()} }

// of is the one for a refusal.
func (l limiters) of(e *state.AuditEvent) *limiter {
	if e.Action == authenticate || len(e.By.Scopes) == 0 {
		return l.others
	}
	return l.known
}

// due returns the records that are due of both.
func (l limiters) due(now time.Time) []Record {
	return append(l.known.due(now), l.others.due(now)...)
}

// limiter decides which refusals are written. Its memory is bounded: kinds beyond maxKinds share one.
type limiter struct {
	kinds map[kind]*refusals
	all   *rate.Limiter
}

// kind is what refusals have in common of which one speaks for many.
type kind struct {
	action, code, who string
	from              netip.Prefix
}

type refusals struct {
	limit *rate.Limiter
	count uint64            // since the last that was written
	last  *state.AuditEvent // the newest of them
	seen  time.Time
}

func newLimiter() *limiter {
	return &limiter{kinds: map[kind]*refusals{}, all: rate.NewLimiter(rate.Every(allEvery), allBurst)}
}

func kindOfRefusal(e *state.AuditEvent) kind {
	k := kind{action: e.Action, code: string(e.Code), who: e.By.String()}
	if e.Action == authenticate {
		// A token that there is must not be told from one that there is not by what is written for it,
		// and so by how long that takes.
		k.who = ""
	}
	if a := e.By.Address.Addr().Unmap(); a.IsValid() {
		bits := 32
		if a.Is6() {
			bits = 64
		}
		k.from, _ = a.WithZone("").Prefix(bits)
	}
	return k
}

// take tells whether a refusal is to be written, and how many of its kind were only counted before.
func (l *limiter) take(e *state.AuditEvent, now time.Time) (suppressed uint64, ok bool) {
	k := kindOfRefusal(e)
	r := l.kinds[k]
	if r == nil {
		if len(l.kinds) >= maxKinds {
			l.forget(now)
		}
		if len(l.kinds) >= maxKinds {
			k = kind{action: "others"}
			r = l.kinds[k]
		}
	}
	if r == nil {
		burst := perKind
		if k.action == authenticate {
			burst = perLogin
		}
		r = &refusals{limit: rate.NewLimiter(rate.Every(kindEvery), burst)}
		l.kinds[k] = r
	}
	r.seen = now
	if r.limit.TokensAt(now) >= 1 && l.all.AllowN(now, 1) && r.limit.AllowN(now, 1) {
		suppressed, r.count, r.last = r.count, 0, nil
		return suppressed, true
	}
	r.count++
	last := *e
	last.Reason, last.Path, last.By.Agent = clean(e.Reason), clean(e.Path), clean(e.By.Agent)
	r.last = &last
	return 0, false
}

// due returns a record for each kind of which refusals have been only counted for a while.
func (l *limiter) due(now time.Time) (out []Record) {
	for _, r := range l.kinds {
		if r.count == 0 || r.limit.TokensAt(now) < 1 || !l.all.AllowN(now, 1) {
			continue
		}
		r.limit.AllowN(now, 1)
		record := records(r.last, now)[0]
		record.Levee.Suppressed = r.count - 1
		r.count, r.last = 0, nil
		out = append(out, record)
	}
	l.forget(now)
	return out
}

// forget lets go of kinds that have been quiet for long enough to be new ones.
func (l *limiter) forget(now time.Time) {
	for k, r := range l.kinds {
		if r.count == 0 && now.Sub(r.seen) > perLogin*kindEvery {
			delete(l.kinds, k)
		}
	}
}
