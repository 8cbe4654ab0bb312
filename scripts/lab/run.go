package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// options are what the lab was asked for.
type options struct {
	Levee     string // the binary
	Scenarios []scenario
	Families  []int
	Duration  time.Duration // of each measurement
	Progress  func(format string, args ...any)
}

const (
	clientRate    = 250 // requests per second
	strangerRate  = 50
	clientTimeout = time.Second
	// A flood is this old when the client begins: the first second's worth that each source has
	// free is over.
	warmUp = 250 * time.Millisecond
	// seed decides which addresses the botnet has. Each scenario adds to it.
	seed = 2027
)

// The client that nobody knows, for what the shield can't do.
var strangerAddrs = family[netip.Addr]{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2a00:db8::10")}

// measurement is one run of the client beside a flood, or beside none.
type measurement struct {
	Client   clientReport  `json:"client"`
	Stranger *clientReport `json:"stranger,omitempty"`
	Flood    floodReport   `json:"flood"`
	// With the shield alone:
	Dropped map[string]uint64 `json:"dropped,omitempty"`
	Passed  uint64            `json:"passed,omitempty"`
}

// row is a scenario in one family, without the shield and with it.
type row struct {
	Scenario string      `json:"scenario"`
	Family   string      `json:"family"`
	Rate     int         `json:"rate"`
	Without  measurement `json:"without"`
	With     measurement `json:"with"`

	scenario scenario
	version  int
}

// result is all that the lab found out.
type result struct {
	Calm    []row         `json:"calm"` // no flood
	Rows    []row         `json:"floods"`
	Timings []timing      `json:"timings"`
	Bans    int           `json:"bans"` // in the botnet's list, and how long the push took
	Push    time.Duration `json:"push_ns"`
	Notes   []string      `json:"notes"`
	Took    time.Duration `json:"took_ns"`
	Held    bool          `json:"held"`
}

// run is the lab, from nothing to nothing.
func run(ctx context.Context, o options) (res result, err error) {
	begun := time.Now()
	n, err := newNetwork()
	if err != nil {
		return res, err
	}
	defer n.close()
	if err := n.check(); err != nil {
		return res, err
	}
	server, err := act(ctx, n.host, roleServer, nil)
	if err != nil {
		return res, err
	}
	defer server.end()
	l := &lab{options: o, net: n}
	res.Notes = n.notes
	for _, version := range o.Families {
		res.Calm = append(res.Calm, row{Scenario: "no flood", Family: "IPv" + strconv.Itoa(version), version: version})
		for i, s := range o.Scenarios {
			at := (i+1)*len(res.Calm) - 1 // families side by side
			r := row{Scenario: s.Name, Family: "IPv" + strconv.Itoa(version), Rate: s.rate, scenario: s, version: version}
			res.Rows = append(res.Rows[:at], append([]row{r}, res.Rows[at:]...)...)
		}
	}

	o.Progress("Without the shield")
	if err := l.measureAll(ctx, &res, func(r *row) *measurement { return &r.Without }); err != nil {
		return res, err
	}
	o.Progress("With the shield")
	if l.shield, err = startShield(ctx, n, o.Levee); err != nil {
		return res, err
	}
	defer l.shield.kill()
	if err := l.timeBans(ctx, &res); err != nil {
		return res, err
	}
	if err := l.measureAll(ctx, &res, func(r *row) *measurement { return &r.With }); err != nil {
		return res, err
	}
	if err := l.shield.stop(); err != nil {
		return res, err
	}
	res.Took = time.Since(begun)
	res.Held = res.held()
	return res, nil
}

// lab is the lab at work.
type lab struct {
	options
	net    *network
	shield *shield // nil: there is none yet
	ready  map[remedy]bool
}

func (l *lab) measureAll(ctx context.Context, res *result, into func(*row) *measurement) error {
	for _, rows := range [][]row{res.Calm, res.Rows} {
		for i := range rows {
			r := &rows[i]
			if err := l.prepare(ctx, r.scenario.remedy, res); err != nil {
				return err
			}
			m, err := l.measure(ctx, r)
			if err != nil {
				return fmt.Errorf("%s %s: %w", r.Scenario, r.Family, err)
			}
			*into(r) = m
			l.Progress("  %-9s %s  %s", r.Scenario, strings.TrimPrefix(r.Family, "IP"), m)
		}
	}
	return nil
}

// prepare applies a scenario's remedy, once.
func (l *lab) prepare(ctx context.Context, r remedy, res *result) error {
	if l.shield == nil || r == nothing || l.ready[r] {
		return nil
	}
	if l.ready == nil {
		l.ready = map[remedy]bool{}
	}
	l.ready[r] = true
	if r == emergency {
		return l.shield.emergency(ctx)
	}
	var list []netip.Addr
	for _, version := range l.Families {
		list = append(list, botnet(seedOf("botnet", version), bots, version)...)
	}
	begun := time.Now()
	if err := l.shield.banList(ctx, list); err != nil {
		return err
	}
	res.Bans, res.Push = len(list), time.Since(begun)
	l.Progress("  %-9s     a list of %d bans: on disk and in force %.1f s after the command began", "botnet", res.Bans, res.Push.Seconds())
	return nil
}

// seedOf gives each scenario and family its own addresses, so that no source comes into one with a
// penalty from another.
func seedOf(scenario string, version int) uint64 {
	s := uint64(seed + version)
	for _, c := range scenario {
		s = s*31 + uint64(c)
	}
	return s
}

func (l *lab) measure(ctx context.Context, r *row) (m measurement, err error) {
	if err := l.settle(ctx, r.version); err != nil {
		return m, err
	}
	var before counts
	if l.shield != nil {
		if before, err = l.shield.count(); err != nil {
			return m, err
		}
	}
	var attack *actor
	if r.scenario.rate > 0 {
		attack, err = act(ctx, l.net.world, roleFlood, floodOrder{
			Interface: l.net.worldLink, NotIn: l.net.outside,
			From: l.net.worldMAC.String(), To: l.net.hostMAC.String(),
			Kind: r.scenario.kind, Version: r.version,
			Sources: r.scenario.sources, Seed: seedOf(r.scenario.Name, r.version),
			Rate: r.scenario.rate, Duration: warmUp + l.Duration + clientTimeout + time.Second,
		})
		if err != nil {
			return m, err
		}
		defer attack.end()
		if err := sleep(ctx, warmUp); err != nil {
			return m, err
		}
	}
	if m.Client, m.Stranger, err = l.clients(ctx, r); err != nil {
		return m, err
	}
	if attack != nil {
		if err := attack.stop(&m.Flood); err != nil {
			return m, err
		}
	}
	if l.shield != nil {
		after, err := l.shield.count()
		if err != nil {
			return m, err
		}
		m.Dropped, m.Passed = after.since(before)
	}
	return m, nil
}

// clients runs the client, and where it makes a difference a stranger beside it.
func (l *lab) clients(ctx context.Context, r *row) (known clientReport, unknown *clientReport, err error) {
	order := clientOrder{
		From: clientAddrs.of(r.version), To: serverAddrs.of(r.version),
		Rate: clientRate, Duration: l.Duration, Timeout: clientTimeout,
	}
	client, err := act(ctx, l.net.world, roleClient, order)
	if err != nil {
		return known, nil, err
	}
	if l.shield != nil && r.scenario.remedy == emergency {
		order.From, order.Rate = strangerAddrs.of(r.version), strangerRate
		stranger, err := act(ctx, l.net.world, roleClient, order)
		if err != nil {
			client.end()
			return known, nil, err
		}
		unknown = new(clientReport)
		if err := stranger.report(unknown); err != nil {
			client.end()
			return known, nil, err
		}
	}
	return known, unknown, client.report(&known)
}

// settle waits until the server answers, so that no measurement starts with what is left of the
// flood before.
func (l *lab) settle(ctx context.Context, version int) error {
	address := net.JoinHostPort(serverAddrs.of(version).String(), strconv.Itoa(serverPort))
	deadline := time.Now().Add(3 * time.Second)
	for {
		conn, err := l.net.world.Dial("tcp", address, 200*time.Millisecond)
		if err == nil {
			return conn.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the server does not answer: %w", err)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

func (l *lab) timeBans(ctx context.Context, res *result) error {
	const length = time.Second
	for _, kill := range []bool{false, true} {
		timings, err := timeBan(ctx, l.net, l.shield, length, kill)
		if err != nil {
			return err
		}
		for _, t := range timings {
			l.Progress("  %-9s %s  first drop %s after the answer, first pass %s after its end",
				map[bool]string{false: "a ban", true: "kill -9"}[kill], strings.TrimPrefix(t.Family, "IP"), millis(t.Begins), millis(t.Ends))
		}
		res.Timings = append(res.Timings, timings...)
		if kill {
			if err := l.shield.start(ctx); err != nil {
				return errors.Join(errors.New("start again after kill -9"), err)
			}
		}
	}
	return nil
}
