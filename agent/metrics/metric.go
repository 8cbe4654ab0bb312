package metrics

import (
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// metric is one name, and what stands behind it.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	labels     []string
	desc       *prometheus.Desc // of those that are read at a scrape
}

func counter(name, help string, labels ...string) *metric {
	return newMetric(name, help, prometheus.CounterValue, labels)
}

func gauge(name, help string, labels ...string) *metric {
	return newMetric(name, help, prometheus.GaugeValue, labels)
}

func newMetric(name, help string, kind prometheus.ValueType, labels []string) *metric {
	name = "levee_" + name
	return &metric{name, help, kind, labels, prometheus.NewDesc(name, help, labels, nil)}
}

// catalogue is every metric of Levee's own.
type catalogue struct {
	packets, bytes                              *metric
	listPackets, listBytes, exceeded            *metric
	untracked, admitted, evicted, contended     *metric
	aggregateFull, events, eventsLost           *metric
	attached, bans, banned, tracked             *metric
	entries, capacity                           *metric
	panicOn, monitorMode                        *metric
	drift, reconciled, reconcileTook, reconcile *metric
	build, scrapeErrors, banChanges, requests   *metric
	notifications                               *metric
}

func newCatalogue() *catalogue {
	return &catalogue{
		packets:       counter("packets_total", "Packets, by what became of them and why. monitor: it would have been dropped, and passed.", "interface", "family", "action", "reason"),
		bytes:         counter("bytes_total", "Bytes of packets, whole frames, by what became of them and why.", "interface", "family", "action", "reason"),
		listPackets:   counter("list_packets_total", "Packets that the bans of an origin dropped, or would have dropped.", "origin", "action"),
		listBytes:     counter("list_bytes_total", "Bytes that the bans of an origin dropped, or would have dropped.", "origin", "action"),
		exceeded:      counter("limit_exceeded_total", "Packets that broke a threshold of a limit, or met its aggregate or a penalty.", "limit", "threshold", "action"),
		untracked:     counter("sources_untracked_total", "Packets whose source found no room in the source table."),
		admitted:      counter("sources_admitted_total", "Sources that got a place in the source table."),
		evicted:       counter("sources_evicted_total", "Sources that lost their place to a newcomer because they had been silent."),
		contended:     counter("contended_total", "Packets passed because other CPUs were changing their source's state at that moment."),
		aggregateFull: counter("aggregate_full_total", "Packets of prefixes that found no room for their aggregate: passed."),
		events:        counter("events_total", "Dropped packets that were sampled."),
		eventsLost:    counter("events_lost_total", "Dropped packets that were not sampled: the second's budget was spent, or the ring was full.", "cause"),
		attached:      gauge("interface_attached", "1 for an interface that is shielded, 0 for one that ought to be and is not.", "interface", "mode"),
		bans:          gauge("bans", "Claims of an origin that hold.", "family", "origin"),
		banned:        gauge("banned_prefixes", "Prefixes on which at least one claim holds.", "family"),
		tracked:       gauge("sources_tracked", "Sources in the source table."),
		entries:       gauge("table_entries", "Slots of a table of the kernel's that are used.", "table"),
		capacity:      gauge("table_capacity", "Entries that a table of the kernel's is sure to hold. One of bans may take more, as chance has it.", "table"),
		panicOn:       gauge("panic", "1 while the panic switch is on, and everything passes."),
		monitorMode:   gauge("monitor_mode", "1 while nothing is dropped, only counted."),
		drift:         gauge("reconcile_drift", "Entries that differed between state and kernel at the last comparison of the whole, and were put right. Reads 0 unless someone else writes the tables."),
		reconciled:    gauge("reconcile_timestamp_seconds", "When state and kernel were last compared as a whole."),
		reconcileTook: gauge("reconcile_duration_seconds", "How long the last comparison of the whole took."),
		reconcile:     gauge("reconcile_failed", "1 if the last comparison of the whole failed."),
		build:         gauge("build_info", "Always 1; its labels say what runs.", "version", "goversion", "schema"),
		scrapeErrors:  counter("scrape_errors_total", "Readings that failed. What could not be read shows what was read last.", "part"),
		banChanges:    counter("ban_changes_total", "Claims that were added, changed, said again unchanged, removed, refused, refused for a protected address, or that expired, since the daemon started.", "op", "origin"),
		notifications: counter("notifications_total", "Notifications of attacks since the daemon started, by what became of them: delivered, failed after all attempts, or dropped because too many waited.", "event", "result"),
		requests:      counter("api_requests_total", "Requests that the API answered since the daemon started, by route and status.", "route", "code"),
	}
}

// all returns the metrics in the order of the documentation.
func (c *catalogue) all() []*metric {
	return []*metric{
		c.packets, c.bytes, c.listPackets, c.listBytes, c.exceeded,
		c.attached, c.panicOn, c.monitorMode, c.bans, c.banned, c.banChanges,
		c.tracked, c.admitted, c.evicted, c.untracked, c.contended, c.aggregateFull,
		c.entries, c.capacity, c.events, c.eventsLost,
		c.drift, c.reconciled, c.reconcileTook, c.reconcile,
		c.requests, c.notifications, c.scrapeErrors, c.build,
	}
}

// Markdown returns the table of all metrics, as the documentation has it.
func Markdown() string {
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range newCatalogue().all() {
		kind := "gauge"
		if m.kind == prometheus.CounterValue {
			kind = "counter"
		}
		labels := "–"
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.name, kind, labels, m.help)
	}
	return b.String()
}
