package reconcile

import (
	"context"
	"fmt"
	"iter"
	stdmaps "maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernel is a value that stands in for the tables.
type kernel struct {
	mu     sync.Mutex
	bans   map[netip.Prefix]maps.Ban
	allows map[netip.Prefix]maps.Allow
	limits map[uint8]maps.Limit
	room   int

	switches maps.Switches
	damaged  bool // beyond what it bans
	synced   int  // how often all of it was put right at once
}

func (k *kernel) PutMany(bans []maps.Ban) (failed []error) {
	for i, b := range bans {
		if err := k.Put(b); err != nil {
			if failed == nil {
				failed = make([]error, len(bans))
			}
			failed[i] = err
		}
	}
	return failed
}

func (k *kernel) Put(b maps.Ban) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.bans[b.Prefix]; !ok && len(k.bans) >= k.room {
		return &maps.FullError{Prefix: b.Prefix.String(), Table: "ban4_table", Used: k.room, Slots: k.room, Setting: "ban4_entries"}
	}
	k.bans[b.Prefix] = b
	return nil
}

func (k *kernel) Fill(wanted iter.Seq[maps.Ban]) (maps.Changes, error) { return k.Sync(wanted) }

func (k *kernel) Compare(_ int, wanted func(netip.Prefix) (maps.Ban, bool)) (next, differing int) {
	k.mu.Lock()
	bans := slices.Collect(stdmaps.Values(k.bans))
	k.mu.Unlock()
	for _, b := range bans {
		if w, ok := wanted(b.Prefix); !ok || w != b {
			differing++
		}
	}
	if k.damaged {
		differing++
	}
	return -1, differing
}

func (k *kernel) Lacks(bans []maps.Ban) (lacking int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, b := range bans {
		if k.bans[b.Prefix] != b {
			lacking++
		}
	}
	return lacking
}

func (k *kernel) All() iter.Seq[maps.Ban] {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Values(slices.Collect(stdmaps.Values(k.bans)))
}

func (k *kernel) Len() (v4, v6 int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for p := range k.bans {
		if p.Addr().Is4() {
			v4++
		} else {
			v6++
		}
	}
	return v4, v6
}

func (k *kernel) Delete(p netip.Prefix) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	_, ok := k.bans[p]
	delete(k.bans, p)
	return ok
}

func (k *kernel) Sync(wanted iter.Seq[maps.Ban]) (c maps.Changes, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.damaged = false
	k.synced++
	seen := map[netip.Prefix]bool{}
	for b := range wanted {
		seen[b.Prefix] = true
		switch had, ok := k.bans[b.Prefix]; {
		case !ok:
			c.Added++
		case had != b:
			c.Updated++
		}
		k.bans[b.Prefix] = b
	}
	for p := range k.bans {
		if !seen[p] {
			delete(k.bans, p)
			c.Removed++
		}
	}
	return c, nil
}

type allows struct{ *kernel }

func (a allows) Sync(wanted iter.Seq[maps.Allow]) (c maps.Changes, err error) {
	next := map[netip.Prefix]maps.Allow{}
	for w := range wanted {
		next[w.Prefix] = w
	}
	if len(next) != len(a.allows) {
		c.Added++
	}
	a.allows = next
	return c, nil
}

type limits struct{ *kernel }

func (l limits) Sync(wanted map[uint8]maps.Limit) (c maps.Changes, err error) {
	l.limits = wanted
	return c, nil
}

type control struct{ *kernel }

func (c control) Sync(s maps.Switches) (changes maps.Changes, err error) {
	if c.switches != s {
		changes.Updated++
	}
	c.switches = s
	return changes, nil
}

func (k *kernel) show() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for p, b := range k.bans {
		out = append(out, fmt.Sprintf("%s %d %v", p, b.List, b.Expires == bpf.Forever))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func setup(t *testing.T) (*state.Store, *kernel, *Reconciler) {
	t.Helper()
	s, err := state.Open(state.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	k := &kernel{bans: map[netip.Prefix]maps.Ban{}, room: 100}
	return s, k, New(Config{State: s, Bans: k, Allows: allows{k}, Limits: limits{k}, Control: control{k}, Interval: 20 * time.Millisecond})
}

func ban(t *testing.T, s *state.Store, r *Reconciler, p string, d time.Duration) {
	t.Helper()
	if _, err := s.Propose([]state.Proposal{{Prefix: netip.MustParsePrefix(p), Origin: "operator", For: d}}); err != nil {
		t.Fatal(err)
	}
	if errs := r.Apply([]netip.Prefix{netip.MustParsePrefix(p)}); errs != nil {
		t.Fatal(errs)
	}
}

func TestApplyAndSync(t *testing.T) {
	s, k, r := setup(t)
	ban(t, s, r, "192.0.2.1/32", 0)
	ban(t, s, r, "2001:db8::/32", time.Hour)
	if got, want := k.show(), "192.0.2.1/32 1 true; 2001:db8::/32 1 false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if done, err := r.Sync(); err != nil || done.Drift != 0 {
		t.Errorf("%+v, %v: nothing differed", done, err)
	}
	// Somebody else changes the tables.
	k.Delete(netip.MustParsePrefix("192.0.2.1/32"))
	if err := k.Put(maps.Ban{Prefix: netip.MustParsePrefix("198.51.100.0/24")}); err != nil {
		t.Fatal(err)
	}
	if done, err := r.Sync(); err != nil || done.Drift != 2 {
		t.Errorf("%+v, %v: two entries differed", done, err)
	}
	if got, want := k.show(), "192.0.2.1/32 1 true; 2001:db8::/32 1 false"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if r.Last().Drift != 2 {
		t.Error("the drift is not remembered")
	}
}

// What somebody else has changed is put right without holding up everybody; only a damage beyond that is
// put right at once.
func TestMend(t *testing.T) {
	s, k, r := setup(t)
	k.room = 10_000
	for i := range 3000 {
		ban(t, s, r, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32).String(), 0)
	}
	want := k.show()
	for i := range 1500 {
		k.Delete(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 32))
		if err := k.Put(maps.Ban{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 32)}); err != nil {
			t.Fatal(err)
		}
	}
	other := netip.MustParsePrefix("10.0.11.1/32")
	if err := k.Put(maps.Ban{Prefix: other, List: 77, Expires: 5}); err != nil {
		t.Fatal(err)
	}
	r.Whole(t.Context())
	if last := r.Last(); last.Drift != 3001 || last.Error != "" || k.synced != 0 {
		t.Errorf("%+v, put right at once %d times", last, k.synced)
	}
	if k.show() != want {
		t.Errorf("in force: %s", k.show())
	}
	k.damaged = true
	r.Whole(t.Context())
	if k.synced != 1 || k.damaged || k.show() != want {
		t.Errorf("put right at once %d times", k.synced)
	}
	r.Whole(t.Context())
	if last := r.Last(); last.Drift != 0 || k.synced != 1 {
		t.Errorf("%+v, put right at once %d times", last, k.synced)
	}
}

func TestFull(t *testing.T) {
	s, k, r := setup(t)
	k.room = 1
	ban(t, s, r, "192.0.2.1/32", 0)
	p := netip.MustParsePrefix("192.0.2.2/32")
	if _, err := s.Propose([]state.Proposal{{Prefix: p, Origin: "operator"}}); err != nil {
		t.Fatal(err)
	}
	errs := r.Apply([]netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), p})
	if len(errs) != 2 || errs[0] != nil || errs[1].Code != state.CodeFull || !strings.Contains(errs[1].Detail, "raise ban4_entries") {
		t.Errorf("%v", errs)
	}
}

// What ends is swept soon, and what someone else changed is put right, by Run alone.
func TestRun(t *testing.T) {
	s, k, r := setup(t)
	ended := make(chan state.Expired, 10)
	r.Expired = func(e []state.Expired) {
		for _, e := range e {
			ended <- e
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	ban(t, s, r, "192.0.2.1/32", 100*time.Millisecond)
	ban(t, s, r, "192.0.2.2/32", 0)
	if e := <-ended; e.Prefix.String() != "192.0.2.1/32" || e.Origin != "operator" {
		t.Errorf("%+v ended", e)
	}
	if got, want := k.show(), "192.0.2.2/32 1 true"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	k.Delete(netip.MustParsePrefix("192.0.2.2/32"))
	for until := time.Now().Add(10 * time.Second); k.show() == ""; time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("it was not put right")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestKernelLimit(t *testing.T) {
	s, k, r := setup(t)
	spec := state.LimitSpec{
		Services: []state.Service{{Protocol: 6, Port: 443}},
		Packets:  &state.Threshold{Rate: state.Rate{Count: 100, Per: time.Minute}},
		Bits:     &state.Threshold{Rate: state.Rate{Count: 1e6, Per: time.Second, Bits: true}, Burst: state.Burst{Units: 5e6, Bits: true}},
		Penalty:  state.Duration(time.Minute), Mode: state.Monitor, Group: state.Group{IPv6: 48},
		Aggregate: &state.Aggregate{Rate: state.Rate{Count: 1000, Per: time.Second}, IPv4: 16, Always: true},
	}
	l, err := s.SetLimit("web", spec, "root")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SyncLimits(); err != nil {
		t.Fatal(err)
	}
	got := k.limits[l.Number]
	want := maps.Limit{
		Thresholds: [bpf.ThresholdMax]maps.Rate{bpf.ThresholdPackets: {PerSecond: 100.0 / 60, Burst: 100.0 / 60}, bpf.ThresholdBits: {PerSecond: 1e6, Burst: 5e6}},
		Aggregate:  maps.Rate{PerSecond: 1000, Burst: 1000}, AggregateAlways: true, Penalty: time.Minute, Monitor: true,
		Group4: 32, Group6: 48, Aggregate4: 16, Aggregate6: 48, Services: []maps.Service{{Protocol: 6, Port: 443}},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	for i, named := range spec.Thresholds() {
		if bpf.Threshold(i).String() != named.Name {
			t.Errorf("threshold %d is %s here and %s in the kernel", i, named.Name, bpf.Threshold(i))
		}
	}
	if _, ok := k.limits[0]; !ok {
		t.Error("the default limit is missing: nothing would be tracked")
	}
}
