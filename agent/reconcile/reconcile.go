package reconcile

import (
	"errors"
	"iter"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

// Interval is how often all is compared.
const Interval = 30 * time.Second

// Bans is the kernel's ban table, as maps.Bans has it.
type Bans interface {
	PutMany([]maps.Ban) []error
	Delete(netip.Prefix) bool
	Fill(iter.Seq[maps.Ban]) (maps.Changes, error)
	Sync(iter.Seq[maps.Ban]) (maps.Changes, error)
	Compare(at int, wanted func(netip.Prefix) (maps.Ban, bool)) (next, differing int)
	Lacks([]maps.Ban) int
	All() iter.Seq[maps.Ban]
	Len() (v4, v6 int)
}

// Allows is the kernel's allow list, as maps.Allows has it.
type Allows interface {
	Sync(iter.Seq[maps.Allow]) (maps.Changes, error)
}

// Limits is the kernel's limits, as maps.Limits has them.
type Limits interface {
	Sync(map[uint8]maps.Limit) (maps.Changes, error)
}

// Control is the kernel's switches, as maps.Control has them.
type Control interface {
	Sync(maps.Switches) (maps.Changes, error)
}

// Desired is what is to be, as state.Store has it.
type Desired interface {
	Effective(netip.Prefix) (state.Ban, bool)
	EffectiveOf(prefixes []netip.Prefix, bans []state.Ban, places []int, none []netip.Prefix) ([]state.Ban, []int, []netip.Prefix)
	Bans() iter.Seq[state.Ban]
	BansFrom(place uint32, bans []state.Ban) (some []state.Ban, next uint32)
	Prefixes() (ipv4, ipv6 int)
	EffectiveAllows() []state.Allow
	Limits() []state.Limit
	Sweep(most int) (ended []state.Expired, next uint64)
	SweepAllows() (ended bool, next uint64)
	Tick() (moved bool)
}

// Config is what a Reconciler works on.
type Config struct {
	State    Desired
	Bans     Bans
	Allows   Allows
	Limits   Limits
	Control  Control
	Clock    state.Clock
	Log      *slog.Logger
	Expired  func([]state.Expired) // told of claims that have ended; may be nil
	Interval time.Duration         // 0: Interval
}

// Reconciler writes the tables. It is safe for concurrent use.
type Reconciler struct {
	Config
	bans     side
	settings side           // allows, limits and switches
	switches *maps.Switches // as they are to be; nil until somebody said so
	wake     chan struct{}
	last     atomic.Pointer[state.Reconciled]
}

// side is one half of the tables: what changes often and must not wait, and the rest.
type side struct {
	flight sync.RWMutex // read: a change is on its way from the state to the kernel
	mu     sync.Mutex   // held while the tables are written
}

// still waits until no change is on its way, and holds up those that come, until its result is called.
func (s *side) still() (free func()) {
	s.flight.Lock()
	s.mu.Lock()
	return func() {
		s.mu.Unlock()
		s.flight.Unlock()
	}
}

// New returns a Reconciler. Nothing is written yet.
func New(c Config) *Reconciler {
	if c.Interval == 0 {
		c.Interval = Interval
	}
	if c.Expired == nil {
		c.Expired = func([]state.Expired) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = state.SystemClock{}
	}
	r := &Reconciler{Config: c, wake: make(chan struct{}, 1)}
	r.last.Store(&state.Reconciled{})
	return r
}

// String names the task.
func (r *Reconciler) String() string { return "reconcile" }

// Last returns what the last comparison of the whole found.
func (r *Reconciler) Last() state.Reconciled { return *r.last.Load() }

// Change runs a change of claims in the state and what applies it to the kernel as one: a comparison
// of the whole never falls between the two, and so finds no difference that is none.
func (r *Reconciler) Change(f func() error) error {
	r.bans.flight.RLock()
	defer r.bans.flight.RUnlock()
	return f()
}

// ChangeSettings is Change for allow entries, limits and switches.
func (r *Reconciler) ChangeSettings(f func() error) error {
	r.settings.flight.RLock()
	defer r.settings.flight.RUnlock()
	return f()
}

// Apply brings the bans of prefixes up to date. The errors stand at their prefixes' places; nil if
// all went well. It reads what is in force when its turn comes, so calls may come in any order.
func (r *Reconciler) Apply(prefixes []netip.Prefix) []*state.Error {
	r.bans.mu.Lock()
	defer r.bans.mu.Unlock()
	defer r.nudge()
	return r.apply(prefixes)
}

// apply puts what is to be before it takes away what is not: where one prefix takes over from another,
// none of their addresses is free in between. What finds no room before that is tried again after it.
func (r *Reconciler) apply(prefixes []netip.Prefix) (failed []*state.Error) {
	const part = 4096
	var (
		none   []netip.Prefix
		bans   []state.Ban
		places []int
		kernel []maps.Ban
		left   []maps.Ban // found no room
		of     []int      // their places
		errs   []error
	)
	for from := 0; from < len(prefixes); from += part {
		bans, places, none = r.State.EffectiveOf(prefixes[from:min(from+part, len(prefixes))], bans[:0], places[:0], none)
		kernel = slices.Grow(kernel[:0], len(bans))
		for _, b := range bans {
			kernel = append(kernel, kernelBan(b))
		}
		for i, err := range r.Bans.PutMany(kernel) {
			if err != nil {
				left, of, errs = append(left, kernel[i]), append(of, from+places[i]), append(errs, err)
			}
		}
	}
	for _, p := range none {
		r.Bans.Delete(p)
	}
	if len(left) == 0 {
		return nil
	}
	if len(none) > 0 {
		errs = r.Bans.PutMany(left)
	}
	for i, err := range errs {
		if err != nil {
			if failed == nil {
				failed = make([]*state.Error, len(prefixes))
			}
			failed[of[i]] = kernelError(err, "prefix", state.PrefixString(left[i].Prefix))
		}
	}
	return failed
}

// nudge has Run look when the next claim ends.
func (r *Reconciler) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func kernelError(err error, field, value string) *state.Error {
	code := state.CodeKernel
	if errors.Is(err, maps.ErrFull) {
		code = state.CodeFull
	}
	detail := err.Error()
	if full, ok := errors.AsType[*maps.FullError](err); ok && value != "" && full.More == 0 {
		detail = "finds no room: " + full.Why() // the value says who
	}
	return &state.Error{Code: code, Field: field, Value: value, Detail: detail}
}

func kernelBan(b state.Ban) maps.Ban {
	return maps.Ban{Prefix: b.Prefix, List: b.List, Monitor: b.Monitor, Expires: b.Expires}
}

// SyncAllows brings the allow list up to date.
func (r *Reconciler) SyncAllows() error {
	r.settings.mu.Lock()
	defer r.settings.mu.Unlock()
	defer r.nudge()
	if _, err := r.syncAllows(); err != nil {
		return kernelError(err, "allow", "")
	}
	return nil
}

func (r *Reconciler) syncAllows() (maps.Changes, error) {
	wanted := r.State.EffectiveAllows()
	return r.Allows.Sync(func(yield func(maps.Allow) bool) {
		for _, a := range wanted {
			if !yield(maps.Allow{Prefix: a.Prefix, NoLimit: a.NoLimits, Derived: a.Source != state.FromAPI, Expires: a.Until()}) {
				return
			}
		}
	})
}

// SyncLimits brings the limits up to date.
func (r *Reconciler) SyncLimits() error {
	r.settings.mu.Lock()
	defer r.settings.mu.Unlock()
	if _, err := r.syncLimits(); err != nil {
		return kernelError(err, "limits", "")
	}
	return nil
}

func (r *Reconciler) syncLimits() (maps.Changes, error) {
	wanted := map[uint8]maps.Limit{}
	for _, l := range r.State.Limits() {
		wanted[l.Number] = kernelLimit(&l)
	}
	return r.Limits.Sync(wanted)
}

// SetControl sets the switches, and has them stay so.
func (r *Reconciler) SetControl(s maps.Switches) error {
	r.settings.mu.Lock()
	defer r.settings.mu.Unlock()
	if _, err := r.Control.Sync(s); err != nil {
		return kernelError(err, "switches", "")
	}
	r.switches = &s
	return nil
}

func kernelLimit(l *state.Limit) maps.Limit {
	k := maps.Limit{Penalty: time.Duration(l.Penalty), Monitor: l.Mode == state.Monitor, Derived: l.Source != state.FromAPI}
	k.Group4, k.Group6 = l.GroupLengths()
	k.Aggregate4, k.Aggregate6 = l.AggregateLengths()
	for i, t := range l.Thresholds() {
		if t.Threshold != nil {
			k.Thresholds[i] = kernelRate(*t.Threshold)
		}
	}
	if l.Aggregate != nil {
		k.Aggregate = kernelRate(l.Aggregate.Threshold())
		k.AggregateAlways = l.Aggregate.Always
	}
	for _, p := range l.Sources {
		k.Sources = append(k.Sources, p.Prefix)
	}
	for _, s := range l.Services {
		k.Services = append(k.Services, maps.Service{Protocol: s.Protocol, Port: s.Port})
	}
	return k
}

func kernelRate(t state.Threshold) maps.Rate {
	return maps.Rate{PerSecond: t.Rate.PerSecond(), Burst: t.BurstUnits()}
}
