package metrics

import (
	"strconv"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-xdp/levee/agent/state"
)

// What an operation on a claim is called where it is no state.Status.
const (
	opExpired   = "expired"
	opProtected = "protected" // refused, since it would touch a protected address
)

// The most values that a label of a Record takes; later ones share one.
const (
	maxOrigins = namedLists
	maxRoutes  = 64
)

// Record counts what the daemon itself does. It is safe for concurrent use. Its counters begin at 0
// with the daemon.
type Record struct {
	changes, requests, notifications *prometheus.CounterVec
	origins, routes                  known
}

// NewRecord returns a Record of nothing.
func NewRecord() *Record {
	c := newCatalogue()
	vec := func(m *metric) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: m.name, Help: m.help}, m.labels)
	}
	notifications := vec(c.notifications)
	for _, event := range []string{"attack_start", "attack_summary", "attack_end"} {
		for _, result := range []string{"delivered", "failed", "dropped"} {
			notifications.WithLabelValues(event, result) // from 0, so that a rate sees the first one too
		}
	}
	return &Record{changes: vec(c.banChanges), requests: vec(c.requests), notifications: notifications, origins: known{most: maxOrigins}, routes: known{most: maxRoutes}}
}

// Describe implements prometheus.Collector.
func (r *Record) Describe(to chan<- *prometheus.Desc) {
	r.changes.Describe(to)
	r.requests.Describe(to)
	r.notifications.Describe(to)
}

// Collect implements prometheus.Collector.
func (r *Record) Collect(to chan<- prometheus.Metric) {
	r.changes.Collect(to)
	r.requests.Collect(to)
	r.notifications.Collect(to)
}

// Bans counts the outcomes of proposals, which stand at the same places.
func (r *Record) Bans(proposals []state.Proposal, outcomes []state.Outcome) {
	var alike run
	for i := range min(len(proposals), len(outcomes)) {
		o := &outcomes[i]
		switch {
		case o.Error != nil && o.Error.Code == state.CodeProtected:
			r.count(&alike, opProtected, proposals[i].Origin)
		case o.Status == state.StatusRemoved && len(o.Removed) > 0:
			for _, c := range o.Removed {
				r.count(&alike, string(o.Status), c.Origin)
			}
		default:
			r.count(&alike, string(o.Status), proposals[i].Origin)
		}
	}
	r.change(alike)
}

// Expired counts claims that have ended.
func (r *Record) Expired(ended []state.Expired) {
	var alike run
	for _, e := range ended {
		r.count(&alike, opExpired, e.Origin)
	}
	r.change(alike)
}

// run is changes of one kind that came one after the other.
type run struct {
	op     string
	origin state.Origin
	n      int
}

// count adds a change to the run, or to a new one if it is of another kind.
func (r *Record) count(alike *run, op string, o state.Origin) {
	if alike.op != op || alike.origin != o {
		r.change(*alike)
		*alike = run{op: op, origin: o}
	}
	alike.n++
}

func (r *Record) change(alike run) {
	if alike.n == 0 {
		return
	}
	// A refused proposal may carry anything as its origin.
	name := "unknown"
	if _, err := state.ParseOrigin(string(alike.origin)); err == nil || alike.origin == state.OriginKernel {
		name = r.origins.bound(string(alike.origin), string(alike.origin.Kind())+":others")
	}
	r.changes.WithLabelValues(alike.op, name).Add(float64(alike.n))
}

// Request counts a request that was answered. The route is a pattern, such as /v1/bans/{prefix}, and
// not the path that was asked for.
func (r *Record) Request(route string, code int) {
	if code < 100 || code > 599 {
		code = 0
	}
	r.requests.WithLabelValues(r.routes.bound(label(route), "others"), strconv.Itoa(code)).Inc()
}

// known is the values that a label has had.
type known struct {
	most int
	mu   sync.Mutex
	seen map[string]bool
}

// bound returns the value, or the other one if there have been too many before it.
func (k *known) bound(value, other string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.seen[value] {
		return value
	}
	if len(k.seen) >= k.most {
		return other
	}
	if k.seen == nil {
		k.seen = map[string]bool{}
	}
	k.seen[value] = true
	return value
}

// Notified counts a notification of an attack, by its event and what became of it. Both come from short
// lists of words.
func (r *Record) Notified(event, result string) { r.notifications.WithLabelValues(event, result).Inc() }
