package httpguard

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// Config says what a Guard limits, and what it does about those who do not stop.
type Config struct {
	// Limits are what requests are held to, all of them. A request that one of them does not grant
	// is charged to none.
	Limits []Limit
	// Cost is what a request counts for: 1 if nil. What costs 0 is not limited. Costs makes one by
	// route.
	Cost func(*http.Request) int

	// Header is where the proxies in front of the server name the client, and TrustedProxies who
	// they are. A server that listens on a Unix socket trusts who connects to it.
	Header         Header
	TrustedProxies []netip.Prefix

	// Failed tells from the answer's status whether a request was a failed login, such as a 401 to
	// POST /login. A handler can tell it by calling Fail, too.
	Failed func(r *http.Request, status int) bool
	// Failures is how many failed logins of a client are an offence, and Rejections how many
	// requests beyond a limit. A login that succeeds takes none back: who guesses has an account, too.
	Failures, Rejections Threshold
	// Ban is for how long an offender is refused.
	Ban Ban
	// Escalation is who has the kernel drop an offender's packets.
	Escalation Escalation

	// Monitor passes every request, and only tells what would have been done. The daemon is asked
	// for bans that monitor, too.
	Monitor bool
	// Entries is how many keys are kept for each limit and threshold: 65,536 if 0. Keys beyond that
	// share places by chance, until some are at rest.
	Entries int
	// NoHeaders leaves the RateLimit headers out. Retry-After stays.
	NoHeaders bool
	// Deny answers a request that is not granted; nil: a problem document. The headers are set by then.
	Deny func(http.ResponseWriter, *http.Request, Denial)
	// Observe is told of everything that is out of the ordinary, for metrics and logs. It is called
	// while a request waits, by many at once, and must be quick. Stats counts the same.
	Observe func(Event)
	// Log is told of trouble, such as a daemon that is away: once, not for each request.
	Log *slog.Logger

	now func() time.Time // for tests
}

// Denial is why a request is not granted.
type Denial struct {
	Limits     []string      // whose grants are used up
	Blocked    bool          // the client has offended, and is refused until its ban ends
	RetryAfter time.Duration // until it may be granted
}

// Guard holds requests to limits. It is safe for concurrent use.
type Guard struct {
	config    Config
	resolver  resolver
	start     time.Time
	limits    []*limiter
	failures  *counter
	rejected  *counter
	offenders *table[offender]
	escalator *escalator // nil: there is no daemon
	stats     counters
	unlisted  atomic.Bool // a proxy that is not listed was told of
	unknown   atomic.Bool // a proxy that names nobody was told of
}

// New returns a Guard. Close it when the server has ended.
func New(c Config) (*Guard, error) {
	if c.Entries == 0 {
		c.Entries = 1 << 16
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	if c.Deny == nil {
		c.Deny = deny
	}
	if c.now == nil {
		c.now = time.Now
	}
	g := &Guard{config: c, start: c.now(), resolver: resolver{header: c.Header}}
	if err := g.check(&c); err != nil {
		return nil, fmt.Errorf("httpguard: %w", err)
	}
	for _, l := range c.Limits {
		g.limits = append(g.limits, newLimiter(l, c.Entries))
	}
	g.failures, g.rejected = newCounter(c.Failures, c.Entries), newCounter(c.Rejections, c.Entries)
	g.offenders = newTable(c.Entries, func(o offender, now int64) bool { return o.known <= now })
	g.config = c
	if c.Escalation.Daemon != nil {
		g.escalator = newEscalator(&g.config, g.note)
	}
	return g, nil
}

func (g *Guard) check(c *Config) error {
	var errs []error
	names := map[string]bool{}
	for _, l := range c.Limits {
		if err := l.validate(); err != nil {
			errs = append(errs, fmt.Errorf("limit %q: %w", l.Name, err))
		}
		if names[l.Name] {
			errs = append(errs, fmt.Errorf("limit %q: stands twice", l.Name))
		}
		names[l.Name] = true
	}
	for name, t := range map[string]Threshold{"failures": c.Failures, "rejections": c.Rejections} {
		if err := t.validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s %s: %w", name, t, err))
		}
	}
	if err := c.Ban.complete(); err != nil {
		errs = append(errs, fmt.Errorf("ban: %w", err))
	}
	if err := c.Escalation.complete(); err != nil {
		errs = append(errs, fmt.Errorf("escalation: %w", err))
	}
	if c.Entries < shards || c.Entries > 1<<24 {
		errs = append(errs, fmt.Errorf("entries %d: is not within %d and %d", c.Entries, shards, 1<<24))
	}
	switch c.Header {
	case NoHeader:
		if len(c.TrustedProxies) > 0 {
			errs = append(errs, errors.New("there are trusted proxies, but no header in which they name the client"))
		}
	case XForwardedFor, Forwarded:
	default:
		errs = append(errs, fmt.Errorf("header %q: is neither %s nor %s", c.Header, XForwardedFor, Forwarded))
	}
	for _, p := range c.TrustedProxies {
		if !p.IsValid() {
			errs = append(errs, errors.New("a trusted proxy is no prefix"))
			continue
		}
		if p.Addr().Is4In6() {
			if p.Bits() < 96 {
				errs = append(errs, fmt.Errorf("the trusted proxy %s: is neither IPv4 nor IPv6", p))
				continue
			}
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		g.resolver.trusted = append(g.resolver.trusted, p.Masked())
	}
	return errors.Join(errs...)
}

// Close hands what still waits to the daemon, for two seconds at most, and ends. Requests that come
// later are held to limits as before; nobody is escalated any more.
func (g *Guard) Close() error {
	if g.escalator != nil {
		g.escalator.close()
	}
	return nil
}

// now is the time since the Guard was made, which no change of the clock touches. It begins late
// enough for 0 to have passed.
func (g *Guard) now() int64 { return int64(g.config.now().Sub(g.start)) + 1 }

// visit is what is known of a request that is under way.
type visit struct {
	guard  *Guard
	client Client
	proxy  bool // it may be a proxy that is not listed
	failed atomic.Bool
}

type visitKey struct{}

// ClientOf tells who sent a request that a Guard has let through.
func ClientOf(ctx context.Context) (Client, bool) {
	v, ok := ctx.Value(visitKey{}).(*visit)
	if !ok {
		return Client{}, false
	}
	return v.client, true
}

// Fail counts a failed login of the client that sent a request. It counts once for a request,
// however often it is called.
func Fail(ctx context.Context) {
	if v, ok := ctx.Value(visitKey{}).(*visit); ok {
		v.fail()
	}
}

func (v *visit) fail() {
	if v.failed.Swap(true) {
		return
	}
	g := v.guard
	g.note(Event{Kind: LoginFailed, Client: v.client})
	if v.client.Addr.IsValid() && g.failures.count(network(v.client.Addr), g.now()) {
		g.offend(v, "failed logins, "+g.config.Failures.String())
	}
}

// Handler holds requests to the limits before it hands them on.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := &visit{guard: g, client: g.resolver.client(r)}
		v.proxy = likelyProxy(r, v.client)
		g.warn(v, r)
		if denial, denied := g.judge(w.Header(), r, v); denied && !g.config.Monitor {
			w.Header().Set("Retry-After", seconds(int64(denial.RetryAfter)))
			g.config.Deny(w, r, denial)
			return
		}
		r = r.WithContext(context.WithValue(r.Context(), visitKey{}, v))
		if g.config.Failed == nil {
			next.ServeHTTP(w, r)
			return
		}
		rec := &recorder{ResponseWriter: w}
		next.ServeHTTP(rec, r)
		if g.config.Failed(r, rec.status()) {
			v.fail()
		}
	})
}

// warn tells of proxies that are not set up as they should be, once of each kind.
func (g *Guard) warn(v *visit, r *http.Request) {
	switch {
	case !v.client.Addr.IsValid():
		g.stats.unknown.Add(1)
		if !g.unknown.Swap(true) {
			g.config.Log.Warn("a proxy does not say whose requests it hands on; they fall under no limit by address", "proxy", r.RemoteAddr, "header", string(g.config.Header))
		}
	case v.proxy:
		if !g.unlisted.Swap(true) {
			g.config.Log.Warn("a proxy seems to stand in front that is none of the trusted ones; all of its clients count as one", "proxy", v.client.Addr)
		}
	}
}

// likelyProxy tells whether a request comes from a proxy that nobody has listed: from an address that
// the internet does not have, with a header that proxies set.
func likelyProxy(r *http.Request, c Client) bool {
	if c.Proxied || !local(c.Addr) {
		return false
	}
	for _, name := range []string{"X-Forwarded-For", "Forwarded", "Via", "X-Real-Ip"} {
		if r.Header[name] != nil {
			return true
		}
	}
	return false
}

func local(a netip.Addr) bool {
	return a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || cgnat.Contains(a)
}

// cgnat is where carriers put their customers, and clouds their load balancers: RFC 6598.
var cgnat = netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64}), 10)

// judge decides on a request, and sets the headers that say how its keys stand.
func (g *Guard) judge(h http.Header, r *http.Request, v *visit) (Denial, bool) {
	now, c := g.now(), v.client
	if left := g.blocked(c.Addr, now); left > 0 {
		g.note(Event{Kind: Blocked, Client: c})
		return Denial{Blocked: true, RetryAfter: time.Duration(left)}, true
	}
	var room [4]standing
	stand := room[:0]
	denial := Denial{}
	for _, l := range g.limits {
		cost := g.cost(l, r)
		if cost <= 0 {
			continue
		}
		key, ok := l.hash(r, c.Addr)
		if !ok {
			continue
		}
		s, own := l.take(key, int64(cost), now)
		if !own {
			g.note(Event{Kind: Crowded, Client: c, Limit: l.Name})
		}
		if stand = append(stand, s); !s.ok {
			denial.Limits = append(denial.Limits, l.Name)
			denial.RetryAfter = max(denial.RetryAfter, time.Duration(s.wait))
			g.note(Event{Kind: Rejected, Client: c, Limit: l.Name})
		}
	}
	denied := len(denial.Limits) > 0
	if denied {
		for i := range stand {
			if stand[i].ok {
				stand[i].giveBack(now)
			}
		}
	}
	if !g.config.NoHeaders {
		setHeaders(h, stand)
	}
	if denied && c.Addr.IsValid() && g.rejected.count(network(c.Addr), now) {
		g.offend(v, "requests beyond a limit, "+g.config.Rejections.String())
	}
	return denial, denied
}

func (g *Guard) cost(l *limiter, r *http.Request) int {
	switch {
	case l.Cost != nil:
		return l.Cost(r)
	case g.config.Cost != nil:
		return g.config.Cost(r)
	}
	return 1
}

// blocked is how long a client's ban still lasts.
func (g *Guard) blocked(addr netip.Addr, now int64) int64 {
	if !addr.IsValid() {
		return 0
	}
	o, _ := g.offenders.peek(maphash.Comparable(g.offenders.seed, network(addr)))
	return o.until - now
}

// offend refuses a client from now on, for longer each time, and has the kernel do so, too.
func (g *Guard) offend(v *visit, why string) {
	now, ban, c := g.now(), offender{}, v.client
	if g.resolver.trusts(c.Addr) {
		g.note(Event{Kind: Spared, Client: c, Reason: "it is a trusted proxy"})
		return
	}
	again := false
	g.offenders.change(maphash.Comparable(g.offenders.seed, network(c.Addr)), now, false, func(o offender) offender {
		if again = o.until > now; again {
			return o // it is refused by now: this request was under way
		}
		if o.known <= now {
			o = offender{}
		}
		o.times++
		o.until = now + int64(g.config.Ban.length(o.times))
		o.known = o.until + int64(g.config.Ban.Forget)
		ban = o
		return o
	})
	if again {
		return
	}
	e := Event{Kind: Offended, Client: c, Reason: why, Times: ban.times, For: time.Duration(ban.until - now)}
	g.note(e)
	if g.escalator == nil {
		return
	}
	if why := g.spared(v); why != "" {
		e.Kind, e.Reason = Spared, why
		g.note(e)
		return
	}
	g.escalator.push(e)
}

// spared tells why the kernel is not to drop a client's packets; empty if it may.
func (g *Guard) spared(v *visit) string {
	c, n := v.client, network(v.client.Addr)
	switch {
	case c.Proxied && !g.config.Escalation.AtProxy:
		return "its packets are its proxy's"
	case c.Addr.IsLoopback() || c.Addr.IsUnspecified() || c.Addr.IsMulticast() || c.Addr.IsLinkLocalUnicast():
		return "it is no address of the internet"
	case v.proxy:
		return "it may be a proxy that is not listed"
	}
	for _, p := range g.resolver.trusted {
		if p.Overlaps(n) {
			return "a trusted proxy is within " + n.String()
		}
	}
	return ""
}

// note counts an event and tells of it.
func (g *Guard) note(e Event) {
	g.stats.count(e)
	g.config.Observe(e)
}
