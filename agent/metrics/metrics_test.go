package metrics

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/common/expfmt"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

var update = flag.Bool("update", false, "write the golden files and the documentation anew")

// fake is a kernel and a daemon, of values.
type fake struct {
	counts   []maps.Count
	lists    []maps.ListCount
	limits   []maps.LimitCount
	stats    [bpf.StatMax]uint64
	snapshot Snapshot
	origins  map[uint16]state.Origin

	packetsErr, listsErr, limitsErr, statsErr, snapshotErr error
}

func (f *fake) Read() ([]maps.Count, error)         { return f.counts, f.packetsErr }
func (f *fake) Lists() ([]maps.ListCount, error)    { return f.lists, f.listsErr }
func (f *fake) Limits() ([]maps.LimitCount, error)  { return f.limits, f.limitsErr }
func (f *fake) Stats() ([bpf.StatMax]uint64, error) { return f.stats, f.statsErr }
func (f *fake) Snapshot() (Snapshot, error)         { return f.snapshot, f.snapshotErr }
func (f *fake) OriginOf(list uint16) state.Origin   { return f.origins[list] }
func (f *fake) collector() *Collector               { return NewCollector("v1.2.3", f, f, nil) }

func newFake() *fake {
	f := &fake{
		counts: []maps.Count{
			{Slot: 0, Reason: bpf.ReasonClean, Family: bpf.FamilyIPv4, Packets: 1000, Bytes: 64000},
			{Slot: 0, Reason: bpf.ReasonClean, Family: bpf.FamilyIPv6, Packets: 10, Bytes: 900},
			{Slot: 0, Reason: bpf.ReasonControl, Family: bpf.FamilyOther, Packets: 5, Bytes: 300},
			{Slot: 0, Reason: bpf.ReasonBanned, Family: bpf.FamilyIPv4, Packets: 7, Bytes: 420},
			{Slot: 0, Reason: bpf.ReasonLimitSYN, Family: bpf.FamilyIPv4, Monitored: true, Packets: 3, Bytes: 180},
			{Slot: 2, Reason: bpf.ReasonClean, Family: bpf.FamilyIPv4, Packets: 50, Bytes: 3000},
			{Slot: 9, Reason: bpf.ReasonClean, Family: bpf.FamilyIPv4, Packets: 1, Bytes: 60}, // nobody's
		},
		lists: []maps.ListCount{
			{List: 1, Packets: 7, Bytes: 420},
			{List: 2, Monitored: true, Packets: 2, Bytes: 120},
			{List: 3, Packets: 1, Bytes: 60},
		},
		limits: []maps.LimitCount{
			{Limit: 1, Threshold: bpf.ThresholdSYN, Monitored: true, Packets: 3, Bytes: 180},
			{Limit: 1, Threshold: bpf.CountPenalty, Packets: 4, Bytes: 240},
			{Limit: 77, Threshold: bpf.ThresholdUDP, Packets: 1, Bytes: 60},
		},
		origins: map[uint16]state.Origin{1: state.OriginOperator, 2: "feed:spamhaus"},
	}
	for i, s := range []bpf.Stat{bpf.StatUntracked, bpf.StatContended, bpf.StatTracked, bpf.StatEvicted, bpf.StatEvents,
		bpf.StatEventsOverBudget, bpf.StatEventsLost, bpf.StatAggregateFull} {
		f.stats[s] = uint64(100 + i)
	}
	web := state.Limit{Name: "web", Number: 1, LimitSpec: state.LimitSpec{Mode: state.Monitor,
		SYN: &state.Threshold{}, Packets: &state.Threshold{}}}
	f.snapshot = Snapshot{
		Slots: []maps.Interface{{Slot: 0, Index: 2, Name: "eth0", Mode: maps.ModeNative}, {Slot: 2, Index: 3, Name: "eth1", Mode: maps.ModeGeneric}},
		Interfaces: []state.InterfaceView{
			{Name: "eth0", Attached: true, Mode: "native", Wanted: state.ModeAuto},
			{Name: "eth1", Attached: true, Mode: "generic", Wanted: state.ModeAuto},
			{Name: "eth2", Wanted: state.ModeAuto},
			{Name: "eth3"}, // nobody wants it
		},
		Limits:     []state.Limit{{Name: "default"}, web},
		Origins:    []state.OriginCount{{Origin: state.OriginOperator, List: 1, IPv4: 3, IPv6: 1}, {Origin: "feed:spamhaus", List: 2, IPv4: 900}},
		IPv4:       902,
		IPv6:       1,
		Tables:     []state.Table{{Table: TableIPv4Bans, Entries: 950, Capacity: 2 << 20}, {Table: TableSources, Entries: 40, Capacity: 1 << 19}},
		Tracked:    40,
		Monitor:    true,
		Reconciled: state.Reconciled{Time: time.Unix(1_700_000_000, 0), Took: state.Duration(20 * time.Millisecond), Drift: 2},
	}
	return f
}

// text is what a scrape shows, without what differs from one Go to the next.
func text(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(c); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&b, family); err != nil {
			t.Fatal(err)
		}
	}
	return regexp.MustCompile(`goversion="[^"]*"`).ReplaceAllString(b.String(), `goversion="go"`)
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-file +now); -update writes it anew:\n%s", path, diff)
	}
}

func TestExposition(t *testing.T) {
	golden(t, "testdata/exposition.txt", text(t, newFake().collector()))
}

func TestRecord(t *testing.T) {
	r := NewRecord()
	operator := state.Claim{Origin: state.OriginOperator}
	feed := state.Claim{Origin: "feed:x"}
	r.Bans(
		[]state.Proposal{{Origin: "operator"}, {Origin: "operator"}, {Origin: "operator"}, {Origin: "nobody\n"}, {Origin: "api", Remove: true, All: true}},
		[]state.Outcome{{Status: state.StatusAdded}, {Status: state.StatusChanged}, {Status: state.StatusUnchanged},
			{Status: state.StatusRefused}, {Status: state.StatusRemoved, Removed: []state.Claim{operator, feed}}})
	r.Expired([]state.Expired{{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Origin: "feed:x"}, {Origin: state.OriginKernel}})
	r.Request("/v1/bans", 200)
	r.Request("/v1/bans", 200)
	r.Request("/v1/check/{address}", 422)
	r.Notified("attack_start", "failed")
	golden(t, "testdata/record.txt", text(t, r))
}

// The documentation's table is made of the metrics.
func TestDocumentation(t *testing.T) {
	const path, begin, end = "../../docs/metrics.md", "<!-- generated: go test ./agent/metrics -update -->\n", "<!-- end -->\n"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the table", path)
	}
	golden(t, path, before+begin+Markdown()+end+after)
}

// Every metric of the catalogue is shown, and no other.
func TestComplete(t *testing.T) {
	r := NewRecord()
	r.change(run{"added", "operator", 1})
	r.Request("/", 200)
	r.Notified("attack_start", "delivered")
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+)`).FindAllStringSubmatch(text(t, newFake().collector())+text(t, r), -1) {
		shown[m[1]] = true
	}
	for _, m := range newCatalogue().all() {
		if !shown[m.name] {
			t.Errorf("%s is not shown", m.name)
		}
		delete(shown, m.name)
		if slices.ContainsFunc(m.labels, func(l string) bool { return l == "address" || l == "source" || l == "prefix" }) {
			t.Errorf("%s has a label for each address", m.name)
		}
	}
	if len(shown) > 0 {
		t.Errorf("not documented: %v", shown)
	}
}

func TestLint(t *testing.T) {
	r := NewRecord()
	r.change(run{"added", "operator", 1})
	r.Request("/", 200)
	r.Notified("attack_start", "delivered")
	registry, err := NewRegistry(newFake().collector(), r)
	if err != nil {
		t.Fatal(err)
	}
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "levee_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	if n, err := testutil.GatherAndCount(registry, "go_goroutines", "process_open_fds"); err != nil || n != 2 {
		t.Errorf("of the runtime and the process: %d, %v", n, err)
	}
}

// A part that can't be read shows what was read last: no counter is missing, and none falls to 0.
func TestReadErrors(t *testing.T) {
	bad := errors.New("no")
	for name, set := range map[string]func(*fake, error){
		"packets": func(f *fake, err error) { f.packetsErr = err },
		"lists":   func(f *fake, err error) { f.listsErr = err },
		"limits":  func(f *fake, err error) { f.limitsErr = err },
		"stats":   func(f *fake, err error) { f.statsErr = err },
		"state":   func(f *fake, err error) { f.snapshotErr = err },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake()
			c := f.collector()
			before := text(t, c)
			set(f, bad)
			f.counts, f.lists, f.limits, f.stats, f.snapshot = emptied(name, f)
			line := fmt.Sprintf("levee_scrape_errors_total{part=%q} ", name)
			want := strings.Replace(before, line+"0", line+"2", 1)
			text(t, c)
			if diff := cmp.Diff(want, text(t, c)); diff != "" {
				t.Errorf("with the errors (-before +now):\n%s", diff)
			}
			// It was never read: it is not there, which is not 0.
			if s := text(t, f.collector()); !strings.Contains(s, line+"1") {
				t.Errorf("the first reading failed:\n%s", s)
			} else if name == "packets" && strings.Contains(s, "levee_packets_total{") {
				t.Error("packets were made up")
			}
		})
	}
}

// emptied is what a reading that fails returns beside its error: nothing.
func emptied(name string, f *fake) ([]maps.Count, []maps.ListCount, []maps.LimitCount, [bpf.StatMax]uint64, Snapshot) {
	e := *f
	switch name {
	case "packets":
		e.counts = nil
	case "lists":
		e.lists = nil
	case "limits":
		e.limits = nil
	case "stats":
		e.stats = [bpf.StatMax]uint64{}
	case "state":
		e.snapshot = Snapshot{}
	}
	return e.counts, e.lists, e.limits, e.stats, e.snapshot
}

// A daemon that starts again shows the kernel's counts, not fewer.
func TestRestart(t *testing.T) {
	f := newFake()
	before := text(t, f.collector())
	f.counts[0].Packets++
	after := text(t, f.collector())
	line := `levee_packets_total{action="pass",family="ipv4",interface="eth0",reason="clean"} `
	if !strings.Contains(before, line+"1000\n") || !strings.Contains(after, line+"1001\n") {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// However much happens, the number of series is bounded.
func TestCardinality(t *testing.T) {
	f := newFake()
	f.counts, f.lists, f.limits, f.snapshot.Slots, f.snapshot.Origins = nil, nil, nil, nil, nil
	for slot := range uint32(4) {
		f.snapshot.Slots = append(f.snapshot.Slots, maps.Interface{Slot: slot, Name: fmt.Sprint("eth", slot)})
		for i := range uint32(bpf.ReasonMax) * uint32(bpf.FamilyMax) * 2 {
			f.counts = append(f.counts, maps.Count{Slot: slot, Reason: bpf.Reason(i / 6), Family: bpf.Family(i / 2 % 3), Monitored: i%2 == 1, Packets: 1})
		}
	}
	for l := range bpf.MaxLists {
		f.origins[uint16(l)] = state.Origin(fmt.Sprint("api:client-", l))
		f.snapshot.Origins = append(f.snapshot.Origins, state.OriginCount{Origin: f.origins[uint16(l)], List: uint16(l), IPv4: 1})
		f.lists = append(f.lists, maps.ListCount{List: uint16(l), Packets: 1}, maps.ListCount{List: uint16(l), Monitored: true, Packets: 1})
	}
	for i := range bpf.MaxLimits * uint32(bpf.LimitCounters) {
		f.limits = append(f.limits, maps.LimitCount{Limit: uint8(i / 8), Threshold: bpf.Threshold(i % 8), Packets: 1}, maps.LimitCount{Limit: uint8(i / 8), Threshold: bpf.Threshold(i % 8), Monitored: true, Packets: 1})
	}
	r := NewRecord()
	for i := range 10_000 {
		r.change(run{"added", state.Origin(fmt.Sprint("api:client-", i)), 1})
		r.change(run{"refused", state.Origin(fmt.Sprint("what is ", i)), 1})
		r.Request(fmt.Sprint("/", i), i)
	}
	registry, err := NewRegistry(f.collector(), r)
	if err != nil {
		t.Fatal(err)
	}
	for name, most := range map[string]int{
		"levee_packets_total":        4 * int(bpf.ReasonMax) * 3 * 2,
		"levee_list_packets_total":   2 * (namedLists + 1),
		"levee_bans":                 2 * (namedLists + 1),
		"levee_limit_exceeded_total": 256 * 8 * 2,
		"levee_ban_changes_total":    maxOrigins + 2,
		"levee_api_requests_total":   maxRoutes + 501,
	} {
		if n, err := testutil.GatherAndCount(registry, name); err != nil || n == 0 || n > most {
			t.Errorf("%s: %d series, at most %d; %v", name, n, most, err)
		}
	}
	// What shares a label is added up.
	if s := text(t, f.collector()); !strings.Contains(s, fmt.Sprintf(`levee_list_packets_total{action="drop",origin="api:others"} %d`, bpf.MaxLists-namedLists)) {
		t.Error("the packets of later origins are not added up")
	}
}

// A name that the kernel takes and Prometheus would not.
func TestOddNames(t *testing.T) {
	f := newFake()
	f.snapshot.Slots[0].Name, f.snapshot.Interfaces[0].Name = "e\xffth\"0", "e\xffth\"0"
	if s := text(t, f.collector()); !strings.Contains(s, `interface="e�th\"0"`) {
		t.Error(s)
	}
}
