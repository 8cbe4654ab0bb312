package protect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Interval is how often the system is looked at.
const Interval = 5 * time.Second

// Linger is how long the peer of an SSH session or of the API stays protected after it was last seen:
// a session that broke off can be taken up again.
const Linger = 10 * time.Minute

// maxPeers bounds how many peers of a kind are protected; beyond it those that were seen longest ago
// are not.
const maxPeers = 1024

// Found is a prefix that the host needs, and what it is to it, as in "this host's own address (eth0)".
type Found struct {
	Prefix netip.Prefix
	Words  string
}

// System is what is asked of the operating system. Its answers are about this moment.
type System interface {
	Own() ([]Found, error)       // addresses of its interfaces
	Gateways() ([]Found, error)  // next hops of its default routes
	Resolvers() ([]Found, error) // DNS servers that it asks
	Sessions() ([]Found, error)  // where those are who are logged in by SSH
}

// Kinds is what is to be protected.
type Kinds struct {
	Own, Gateways, Resolvers, SSH, API bool
}

// Config is what a Finder works with.
type Config struct {
	System   System
	Kinds    Kinds
	Protect  func([]state.Allow) error // puts what was found into force
	Clock    state.Clock
	Log      *slog.Logger
	Interval time.Duration // 0: Interval
}

// always is protected on every host.
var always = []Found{
	{netip.MustParsePrefix("127.0.0.0/8"), "this host's own loopback"},
	{netip.MustParsePrefix("::1/128"), "this host's own loopback"},
	{netip.MustParsePrefix("0.0.0.0/32"), "the source of hosts that have no address yet (DHCP)"},
	{netip.MustParsePrefix("::/128"), "the source of hosts that have no address yet (duplicate detection)"},
	{netip.MustParsePrefix("fe80::/10"), "the link's own range (neighbour discovery, routers)"},
}

// Finder keeps the protected addresses up to date.
type Finder struct {
	Config
	refresh sync.Mutex // held while the system is asked
	wake    chan struct{}

	mu      sync.Mutex // guards what follows
	kinds   Kinds
	last    map[string][]Found // by kind, of the last time that it could be found
	ssh     peers
	clients clients
	problem string
}

// peers is who was seen, and when by the monotonic clock, in ns.
type peers map[netip.Prefix]peer

type peer struct {
	words string
	seen  uint64
}

// New returns a Finder that has not looked yet.
func New(c Config) *Finder {
	if c.Interval == 0 {
		c.Interval = Interval
	}
	if c.Clock == nil {
		c.Clock = state.SystemClock{}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Finder{Config: c, kinds: c.Kinds, wake: make(chan struct{}, 1), last: map[string][]Found{}, ssh: peers{}, clients: clients{}}
}

// String names the task.
func (f *Finder) String() string { return "protect" }

// Set says anew what is to be protected. It comes into force with the next Refresh.
func (f *Finder) Set(k Kinds) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.kinds = k
}

// Problem says what could not be found out the last time; empty if nothing.
func (f *Finder) Problem() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.problem
}

// Run looks at the system in its interval, and when a client is new, though not for each of many, until
// the context ends.
func (f *Finder) Run(ctx context.Context) error {
	ticker := time.NewTicker(f.Interval)
	defer ticker.Stop()
	var woken time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		case <-f.wake:
			if !f.rest(ctx, woken) {
				return nil
			}
			woken = time.Now()
		}
		before := f.Problem()
		if err := f.Refresh(); err != nil && err.Error() != before {
			f.Log.Error("protected addresses could not all be found; those known before stay protected", "error", err)
		}
	}
}

// rest waits until it is time to look for a new client again; false: the context has ended.
func (f *Finder) rest(ctx context.Context, woken time.Time) bool {
	timer := time.NewTimer(time.Until(woken.Add(wakeEvery)))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// Refresh looks at the system, and puts what it finds into force. What can't be found out stays as it
// was.
func (f *Finder) Refresh() error {
	f.refresh.Lock()
	defer f.refresh.Unlock()
	f.mu.Lock()
	kinds := f.kinds
	f.mu.Unlock()
	now := f.Clock.Monotonic()

	var errs []error
	ask := func(name string, wanted bool, find func() ([]Found, error)) []Found {
		if !wanted {
			return nil
		}
		found, err := find()
		f.mu.Lock()
		defer f.mu.Unlock()
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			return f.last[name]
		}
		f.last[name] = found
		return found
	}
	whole := slices.Clone(always)
	whole = append(whole, ask("own addresses", kinds.Own, f.System.Own)...)
	whole = append(whole, ask("gateways", kinds.Gateways, f.System.Gateways)...)
	whole = append(whole, ask("resolvers", kinds.Resolvers, f.System.Resolvers)...)
	sessions := ask("SSH sessions", kinds.SSH, f.System.Sessions)

	f.mu.Lock()
	for _, s := range sessions {
		f.ssh.see(s.Prefix, s.Words, now)
	}
	if kinds.SSH {
		whole = append(whole, f.ssh.lately(now)...)
	}
	if kinds.API {
		whole = append(whole, f.clients.lately(now)...)
	}
	f.mu.Unlock()

	errs = append(errs, f.Protect(entries(whole)))
	err := errors.Join(errs...)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.problem = ""
	if err != nil {
		f.problem = err.Error()
	}
	return err
}

// entries makes allow entries of what was found; of several words for a prefix the first counts.
func entries(found []Found) []state.Allow {
	seen := map[netip.Prefix]bool{}
	var out []state.Allow
	for _, w := range found {
		p, err := state.Canonical(w.Prefix)
		if err != nil || seen[p] {
			continue
		}
		seen[p] = true
		out = append(out, state.Allow{Prefix: p, Source: state.FromProtected, Comment: w.Words})
	}
	return out
}

func (p peers) see(prefix netip.Prefix, words string, now uint64) {
	p[prefix] = peer{words, now}
	if len(p) <= maxPeers {
		return
	}
	var oldest netip.Prefix
	for q, at := range p {
		if !oldest.IsValid() || at.seen < p[oldest].seen {
			oldest = q
		}
	}
	delete(p, oldest)
}

// lately forgets who was not seen for long, and returns the others in order.
func (p peers) lately(now uint64) []Found {
	var out []Found
	for prefix, at := range p {
		if now-min(at.seen, now) > uint64(Linger) {
			delete(p, prefix)
			continue
		}
		out = append(out, Found{prefix, at.words})
	}
	slices.SortFunc(out, func(a, b Found) int {
		return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()))
	})
	return out
}
