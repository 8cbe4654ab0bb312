package notify

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/agent/state"
)

// Body is the JSON of a notification.
type Body struct {
	Version int       `json:"version"` // of this shape: 1
	Event   Event     `json:"event"`
	Host    string    `json:"host"`
	Levee   string    `json:"levee"` // the daemon's version
	Mode    string    `json:"mode"`  // enforce or monitor
	Time    time.Time `json:"time"`
	Attack  Attack    `json:"attack"`
}

// Config is what a Notifier works with.
type Config struct {
	Thresholds
	Target
	Host    string
	Version string

	Counted func() ([]state.Counted, error)                              // every counter of packets
	Sources func(ctx context.Context, n int) ([]state.SourceView, error) // those whose limits dropped most
	Mode    func() state.Mode
	Clock   state.Clock
	Tick    <-chan time.Time                           // nil: once a second
	Sent    func(event Event, how Result)              // told of each notification; may be nil
	Wait    func(context.Context, time.Duration) error // nil: the system's clock
	Log     *slog.Logger
}

// Result is what became of a notification.
type Result string

// The results.
const (
	Delivered Result = "delivered"
	Failed    Result = "failed"  // after all attempts
	Dropped   Result = "dropped" // the queue was full
)

// queued is how many notifications may wait while one is on its way.
const queued = 16

// Notifier watches and tells.
type Notifier struct {
	Config
	sender *sender
	queue  chan message
}

// New returns a Notifier. Its URL is https, or http to this very host.
func New(c Config) *Notifier {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Sent == nil {
		c.Sent = func(Event, Result) {}
	}
	if c.Wait == nil {
		c.Wait = wait
	}
	return &Notifier{Config: c, sender: newSender(c.Target, c.Clock.Now, c.Wait), queue: make(chan message, queued)}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Run watches until the context ends. A notification that is on its way then is given up.
func (n *Notifier) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { n.watch(ctx); return nil })
	group.Go(func() error { n.deliver(ctx); return nil })
	defer n.sender.http.CloseIdleConnections()
	return group.Wait()
}

func (n *Notifier) watch(ctx context.Context) {
	tick := n.Tick
	if tick == nil {
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		tick = ticker.C
	}
	d := &detector{Thresholds: n.Thresholds}
	var before map[string]uint64 // what limits had dropped of each source when the rate rose
	failing := false
	for {
		mono, now := time.Duration(n.Clock.Monotonic()), n.Clock.Now()
		list, err := n.Counted()
		switch {
		case err != nil && !failing:
			n.Log.Warn("notify: the counters could not be read; attacks go unseen", "error", err)
		case err == nil:
			event, attack := d.observe(countsOf(list), mono, now)
			if event != "" {
				n.tell(ctx, event, attack, before)
			}
			if d.before == nil {
				before = nil
			} else if before == nil {
				before = n.dropped(ctx)
			}
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
	}
}

// dropped is what the limits of sources have dropped up to now.
func (n *Notifier) dropped(ctx context.Context) map[string]uint64 {
	before := map[string]uint64{}
	list, err := n.Sources(ctx, 100*most)
	if err != nil {
		n.Log.Warn("notify: the sources could not be read", "error", err)
	}
	for _, s := range list {
		before[s.Prefix.String()+" "+s.Limit] = s.Dropped
	}
	return before
}

// heaviest bounds and orders sources.
func heaviest(list []TopSource) []TopSource {
	slices.SortFunc(list, func(a, b TopSource) int {
		return cmp.Or(cmp.Compare(b.Dropped, a.Dropped), cmp.Compare(a.Prefix, b.Prefix))
	})
	return list[:min(len(list), most)]
}

// tell puts a notification into the queue, if there is room.
func (n *Notifier) tell(ctx context.Context, event Event, a Attack, before map[string]uint64) {
	a.Sources = []TopSource{}
	list, err := n.Sources(ctx, 100*most)
	if err != nil {
		n.Log.Warn("notify: the sources could not be read", "error", err)
	}
	for _, s := range list {
		prefix := s.Prefix.String()
		dropped := s.Dropped
		if was := before[prefix+" "+s.Limit]; was <= dropped {
			dropped -= was
		}
		if dropped > 0 {
			a.Sources = append(a.Sources, TopSource{prefix, s.Limit, dropped})
		}
	}
	a.Sources = heaviest(a.Sources)
	body, err := json.Marshal(Body{Version: 1, Event: event, Host: n.Host, Levee: n.Version, Mode: string(n.Mode()), Time: n.Clock.Now(), Attack: a})
	if err != nil {
		n.Log.Error("notify: a notification could not be written", "error", err)
		return
	}
	told := n.Log.With("attack", a.ID, "packets_per_second", int64(a.Rate), "packets", a.Packets, "mode", n.Mode())
	switch event {
	case Start:
		told.Warn("notify: an attack has begun")
	case Summary:
		told.Warn("notify: an attack goes on")
	case End:
		told.Warn("notify: an attack is over")
	}
	var random [8]byte
	rand.Read(random[:]) // never fails
	select {
	case n.queue <- message{event, fmt.Sprintf("%s-%s", a.ID, hex.EncodeToString(random[:])), body}:
	default:
		n.Sent(event, Dropped)
		n.Log.Error("notify: a notification was left out, since as many wait as may", "event", event, "attack", a.ID, "waiting", queued)
	}
}

func (n *Notifier) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case m := <-n.queue:
			err := n.sender.send(ctx, m)
			switch {
			case err == nil:
				n.Sent(m.event, Delivered)
			case ctx.Err() != nil:
				return
			default:
				n.Sent(m.event, Failed)
				n.Log.Error("notify: a notification did not get through", "event", m.event, "delivery", m.delivery, "error", err)
			}
		}
	}
}
