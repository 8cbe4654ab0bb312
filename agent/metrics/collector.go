package metrics

import (
	"cmp"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// namedLists is how many origins have labels of their own; those that came later share one by kind.
const namedLists = 128

// Collector reads the kernel's counters and the daemon's state when it is scraped. A part that
// can't be read shows what was read of it last, so that no counter falls, and is counted as an
// error of the scrape.
type Collector struct {
	*catalogue
	version  string
	counters Counters
	daemon   Daemon
	log      *slog.Logger

	mu       sync.Mutex // one scrape at a time
	snapshot Snapshot
	parts    []*part
}

// part is what is read in one go, and shown as it was last read.
type part struct {
	name   string
	read   func(*samples) error
	last   *samples
	errors float64
}

// NewCollector returns a Collector of a version of Levee. The log may be nil.
func NewCollector(version string, counters Counters, daemon Daemon, log *slog.Logger) *Collector {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Collector{catalogue: newCatalogue(), version: version, counters: counters, daemon: daemon, log: log}
	c.parts = []*part{
		{name: "state", read: c.readState}, // the first: the others take names from it
		{name: "packets", read: c.readPackets},
		{name: "lists", read: c.readLists},
		{name: "limits", read: c.readLimits},
		{name: "stats", read: c.readStats},
	}
	return c
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(to chan<- *prometheus.Desc) {
	for _, m := range c.all() {
		if m != c.banChanges && m != c.requests && m != c.notifications { // the Record's
			to <- m.desc
		}
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	defer c.mu.Unlock()
	own := newSamples()
	own.add(c.build, 1, c.version, runtime.Version(), strconv.Itoa(bpf.Schema))
	for _, p := range c.parts {
		s := newSamples()
		if err := p.read(s); err != nil {
			p.errors++
			c.log.Warn("metrics: a part could not be read", "part", p.name, "error", err)
		} else {
			p.last = s
		}
		own.add(c.scrapeErrors, p.errors, p.name)
		if p.last != nil {
			p.last.send(to)
		}
	}
	own.send(to)
}

// samples are values by metric and labels. Values of the same labels add up.
type samples struct {
	values map[sample]float64
	order  []sample
}

type sample struct {
	metric *metric
	labels [4]string
}

func newSamples() *samples { return &samples{values: map[sample]float64{}} }

func (s *samples) add(m *metric, value float64, labels ...string) {
	key := sample{metric: m}
	copy(key.labels[:], labels)
	if _, ok := s.values[key]; !ok {
		s.order = append(s.order, key)
	}
	s.values[key] += value
}

func (s *samples) send(to chan<- prometheus.Metric) {
	for _, key := range s.order {
		m := key.metric
		to <- prometheus.MustNewConstMetric(m.desc, m.kind, s.values[key], key.labels[:len(m.labels)]...)
	}
}

func (c *Collector) readState(s *samples) error {
	now, err := c.daemon.Snapshot()
	if err != nil {
		return err
	}
	c.snapshot = now
	for _, i := range now.Interfaces {
		if i.Attached || i.Wanted != "" {
			s.add(c.attached, bit(i.Attached), label(i.Name), cmp.Or(i.Mode, "none"))
		}
	}
	for _, o := range now.Origins {
		name := originLabel(o.Origin, o.List)
		s.add(c.bans, float64(o.IPv4), bpf.FamilyIPv4.String(), name)
		s.add(c.bans, float64(o.IPv6), bpf.FamilyIPv6.String(), name)
	}
	s.add(c.banned, float64(now.IPv4), bpf.FamilyIPv4.String())
	s.add(c.banned, float64(now.IPv6), bpf.FamilyIPv6.String())
	s.add(c.tracked, float64(now.Tracked))
	for _, t := range now.Tables {
		s.add(c.entries, float64(t.Entries), t.Table)
		s.add(c.capacity, float64(t.Capacity), t.Table)
	}
	s.add(c.panicOn, bit(now.Panic))
	s.add(c.monitorMode, bit(now.Monitor))
	if r := now.Reconciled; !r.Time.IsZero() {
		s.add(c.drift, float64(r.Drift))
		s.add(c.reconciled, float64(r.Time.UnixNano())/1e9)
		s.add(c.reconcileTook, float64(r.Took)/1e9)
		s.add(c.reconcile, bit(r.Error != ""))
	}
	return nil
}

func (c *Collector) readPackets(s *samples) error {
	counts, err := c.counters.Read()
	if err != nil {
		return err
	}
	add := func(name string, n maps.Count) {
		labels := []string{name, n.Family.String(), action(n.Reason, n.Monitored), n.Reason.String()}
		s.add(c.packets, float64(n.Packets), labels...)
		s.add(c.bytes, float64(n.Bytes), labels...)
	}
	names := map[uint32]string{}
	for _, i := range c.snapshot.Slots {
		names[i.Slot] = label(i.Name)
		// From the start, so that a rate sees the first packet too.
		for _, r := range bpf.Reasons() {
			add(names[i.Slot], maps.Count{Reason: r, Family: bpf.FamilyIPv4})
			add(names[i.Slot], maps.Count{Reason: r, Family: bpf.FamilyIPv6})
		}
	}
	for _, n := range counts {
		if name, ok := names[n.Slot]; ok && n.Family < bpf.FamilyMax {
			add(name, n)
		}
	}
	return nil
}

func (c *Collector) readLists(s *samples) error {
	counts, err := c.counters.Lists()
	if err != nil {
		return err
	}
	for _, n := range counts {
		name := originLabel(c.daemon.OriginOf(n.List), n.List)
		s.add(c.listPackets, float64(n.Packets), name, action(bpf.ReasonBanned, n.Monitored))
		s.add(c.listBytes, float64(n.Bytes), name, action(bpf.ReasonBanned, n.Monitored))
	}
	return nil
}

func (c *Collector) readLimits(s *samples) error {
	counts, err := c.counters.Limits()
	if err != nil {
		return err
	}
	names := map[uint8]string{}
	for _, l := range c.snapshot.Limits {
		names[l.Number] = l.Name
		for _, t := range l.Thresholds() {
			if t.Threshold != nil {
				s.add(c.exceeded, 0, l.Name, t.Name, action(bpf.ReasonPenalty, l.Mode == state.Monitor))
			}
		}
	}
	for _, n := range counts {
		if n.Threshold < bpf.LimitCounters {
			s.add(c.exceeded, float64(n.Packets), cmp.Or(names[n.Limit], "unknown"), n.Threshold.String(),
				action(bpf.ReasonPenalty, n.Monitored))
		}
	}
	return nil
}

func (c *Collector) readStats(s *samples) error {
	stats, err := c.counters.Stats()
	if err != nil {
		return err
	}
	for _, m := range []struct {
		metric *metric
		stat   bpf.Stat
	}{
		{c.untracked, bpf.StatUntracked},
		{c.admitted, bpf.StatTracked},
		{c.evicted, bpf.StatEvicted},
		{c.contended, bpf.StatContended},
		{c.aggregateFull, bpf.StatAggregateFull},
		{c.events, bpf.StatEvents},
	} {
		s.add(m.metric, float64(stats[m.stat]))
	}
	s.add(c.eventsLost, float64(stats[bpf.StatEventsOverBudget]), "budget")
	s.add(c.eventsLost, float64(stats[bpf.StatEventsLost]), "ring")
	return nil
}

// action says what became of packets with a reason.
func action(r bpf.Reason, monitored bool) string {
	switch {
	case monitored:
		return state.ActionMonitor
	case r.Drops():
		return state.ActionDrop
	}
	return state.ActionPass
}

// originLabel bounds the origins that have labels of their own. A list's number is kept, so its
// label is the same after a restart.
func originLabel(o state.Origin, list uint16) string {
	switch {
	case o == "":
		return "unknown"
	case list >= namedLists:
		return string(o.Kind()) + ":others"
	}
	return label(string(o))
}

// label makes a value that Prometheus takes of one that the kernel took.
func label(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

func bit(on bool) float64 {
	if on {
		return 1
	}
	return 0
}
