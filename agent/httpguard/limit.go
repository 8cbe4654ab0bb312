package httpguard

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Limit is how much one key may ask for.
type Limit struct {
	// Name stands in the RateLimit headers and in events: up to 32 of a-z, 0-9, '.', '_' and '-'.
	Name string
	// Key tells whom a request is charged to, such as the user of its session or a hash of its
	// token; an empty key is not charged. Nil: the client's address, of IPv6 its /64.
	Key func(*http.Request) string
	// Requests within Per are granted in the long run, and Burst at once; Burst is Requests if 0.
	Requests int
	Per      time.Duration
	Burst    int
	// Cost is what a request counts for, instead of the Config's.
	Cost func(*http.Request) int
}

func (l *Limit) validate() error {
	switch {
	case l.Name == "" || len(l.Name) > 32 || strings.Trim(l.Name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "":
		return errors.New("its name may have up to 32 of a-z, 0-9, '.', '_' and '-'")
	case l.Requests <= 0 || l.Per <= 0:
		return errors.New("it grants nothing: give Requests and Per")
	case l.Burst < 0:
		return errors.New("its burst is less than 0")
	case l.Per/time.Duration(l.Requests) <= 0:
		return errors.New("it grants more than one request in a nanosecond")
	case l.Per/time.Duration(l.Requests) > maxSpan/time.Duration(max(l.Burst, l.Requests)):
		return fmt.Errorf("its burst would take more than %s to come back", maxSpan)
	}
	return nil
}

// maxSpan bounds what a limit or a threshold looks back.
const maxSpan = 365 * 24 * time.Hour

// limiter holds keys to a limit by GCRA (ITU-T I.371): all that is known of a key is the time at
// which what it has used is paid for.
type limiter struct {
	Limit
	step  int64 // ns that a unit costs
	burst int64
	paid  *table[int64]
}

func newLimiter(l Limit, entries int) *limiter {
	if l.Burst == 0 {
		l.Burst = l.Requests
	}
	return &limiter{Limit: l, step: int64(l.Per) / int64(l.Requests), burst: int64(l.Burst),
		paid: newTable(entries, func(paid, now int64) bool { return paid <= now })}
}

// standing is how a key stands with a limit after a request.
type standing struct {
	limit *limiter
	key   uint64
	cost  int64
	ok    bool
	rest  int64 // units that are left
	reset int64 // ns until all of them are back
	wait  int64 // ns until the request would be granted; 0 if it is
}

// hash is the key that a request is charged to; false if to none.
func (l *limiter) hash(r *http.Request, client netip.Addr) (uint64, bool) {
	if l.Key == nil {
		if !client.IsValid() {
			return 0, false
		}
		return maphash.Comparable(l.paid.seed, network(client)), true
	}
	key := l.Key(r)
	return maphash.String(l.paid.seed, key), key != ""
}

// take charges a key, unless it has not got that much left. What costs more than the burst costs
// the burst, or it could never be granted. The answer is false if the key found no room of its own.
func (l *limiter) take(key uint64, cost, now int64) (s standing, room bool) {
	s = standing{limit: l, key: key, cost: min(cost, l.burst)}
	room = l.paid.change(key, now, true, func(paid int64) int64 {
		paid = max(paid, now)
		next := paid + s.cost*l.step
		if s.ok = next-now <= l.burst*l.step; s.ok {
			paid = next
		} else {
			s.wait = next - now - l.burst*l.step
		}
		s.rest, s.reset = l.burst-(paid-now+l.step-1)/l.step, paid-now
		return paid
	})
	return s, room
}

// giveBack undoes a charge.
func (s *standing) giveBack(now int64) {
	s.limit.paid.change(s.key, now, true, func(paid int64) int64 { return paid - s.cost*s.limit.step })
	s.rest = min(s.limit.burst, s.rest+s.cost)
	s.reset = max(0, s.reset-s.cost*s.limit.step)
}

// Costs returns a Cost by route, in the patterns of http.ServeMux: "POST /login", "/search/". What no
// pattern matches costs 1; what costs 0 is not limited.
func Costs(routes map[string]int) func(*http.Request) int {
	mux := http.NewServeMux()
	for pattern, cost := range routes {
		mux.Handle(pattern, costHandler(cost))
	}
	return func(r *http.Request) int {
		h, pattern := mux.Handler(r)
		if cost, ok := h.(costHandler); ok && pattern != "" {
			return int(cost)
		}
		return 1
	}
}

type costHandler int

func (costHandler) ServeHTTP(http.ResponseWriter, *http.Request) {}
