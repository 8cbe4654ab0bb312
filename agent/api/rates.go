package api

import (
	"container/list"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Rate is how often something may be done.
type Rate struct {
	PerSecond float64
	Burst     int // at once
}

// maxRated bounds of how many peers a rate is kept. Of more, the one that was quiet longest is
// forgotten, and may begin anew.
const maxRated = 8192

// rates holds each of many peers to a rate, in bounded memory.
type rates struct {
	rate Rate
	now  func() time.Time

	mu    sync.Mutex
	by    map[string]*list.Element
	order *list.List // *rated, the one that was quiet longest first
}

type rated struct {
	key   string
	limit *rate.Limiter
}

// newRates returns nil, which allows everything, for a rate of 0.
func newRates(r Rate) *rates {
	if r.PerSecond <= 0 {
		return nil
	}
	return &rates{rate: r, now: time.Now, by: map[string]*list.Element{}, order: list.New()}
}

// allow charges a peer for one; it returns 0, or how long it has to wait first.
func (r *rates) allow(key string) time.Duration {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.by[key]
	if e == nil {
		if r.order.Len() >= maxRated {
			oldest := r.order.Front()
			delete(r.by, oldest.Value.(*rated).key)
			r.order.Remove(oldest)
		}
		e = r.order.PushBack(&rated{key, rate.NewLimiter(rate.Limit(r.rate.PerSecond), max(r.rate.Burst, 1))})
		r.by[key] = e
	}
	r.order.MoveToBack(e)
	now := r.now()
	reservation := e.Value.(*rated).limit.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		reservation.CancelAt(now)
	}
	return wait
}
