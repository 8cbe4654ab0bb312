package agent

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
	kernel "github.com/levee-xdp/levee/maps"
)

const rescueFile = `interfaces: [eth0]
allow: [{prefix: 198.51.100.0/24, comment: office}]
limits:
  web: {services: [tcp/443], packets: 10k/s}
  file-only: {services: [tcp/25], packets: 5/s}
`

// decidedAtRunTime is a daemon at which everything was decided that the kernel knows of, and one thing that
// it does not.
func decidedAtRunTime(t *testing.T) *testDaemon {
	d := newDaemon(t, newFakeKernel(), rescueFile)
	ctx := t.Context()
	d.ban(state.BanItem{Prefix: "192.0.2.1", Origin: "operator", For: "4h"}, state.BanItem{Prefix: "2001:db8::/48", Monitor: true})
	allow, err := d.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{
		{Prefix: "203.0.113.0/24", NoLimits: true}, {Prefix: "2001:db8:1::/48", For: "2h"}}})
	if err != nil || allow.Done != 2 {
		t.Fatalf("%+v, %v", allow, err)
	}
	for name, spec := range map[string]state.LimitSpec{
		"default": {Packets: threshold(t, "100/m"), Penalty: state.Duration(time.Minute)},
		"web":     {Services: services(t, "tcp/443"), Packets: threshold(t, "20k/s"), Bits: threshold(t, "3Mbit/s")},
		"dns": {Services: services(t, "udp/53"), Sources: []state.Prefix{{Prefix: netip.MustParsePrefix("10.0.0.0/8")}}, UDP: threshold(t, "7/h"), Mode: state.Monitor,
			Group: state.Group{IPv4: 24}, Aggregate: &state.Aggregate{Rate: threshold(t, "30/m").Rate, IPv6: 32, Always: true}},
	} {
		if _, err := d.SetLimit(ctx, name, spec); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := d.Attach(ctx, state.AttachRequest{Name: "eth1", Mode: state.ModeGeneric}); err != nil {
		t.Fatal(err)
	}
	return d
}

func services(t *testing.T, texts ...string) (out []state.Service) {
	for _, text := range texts {
		s, err := state.ParseService(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func (d *testDaemon) damage() {
	d.Helper()
	d.end()
	if err := os.Truncate(filepath.Join(d.dir, "state.db"), 0); err != nil {
		d.Fatal(err)
	}
}

// held is everything that the fake kernel holds, as text, without what it can't know.
func (d *testDaemon) held() string {
	k := d.kernel
	limits := fakeLimits{k}.All()
	var lines []string
	for number, l := range limits {
		lines = append(lines, fmt.Sprintf("%d %+v", number, l))
	}
	slices.Sort(lines)
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, a := range k.allows {
		lines = append(lines, fmt.Sprintf("%s %v %d", a.Prefix, a.NoLimit, a.Expires))
	}
	for _, b := range k.bans {
		lines = append(lines, fmt.Sprintf("%s %v", b.Prefix, b.Monitor))
	}
	for _, a := range k.attachments {
		lines = append(lines, fmt.Sprintf("%s %s", a.Name, a.Mode))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// same compares what is held but for times, which may be off by what a start takes.
func (d *testDaemon) same(when, before string) {
	d.Helper()
	after := d.held()
	strip := func(s string) (out []string) {
		for line := range strings.Lines(s) {
			if f := strings.Fields(line); len(f) == 3 && strings.Contains(f[0], "/") && len(f[2]) > 5 {
				line = f[0] + " " + f[1] + " " + f[2][:len(f[2])-10]
			}
			out = append(out, strings.TrimSpace(line))
		}
		return out
	}
	if !slices.Equal(strip(before), strip(after)) {
		d.Errorf("%s: in the kernel is\n%s\nwas\n%s", when, after, before)
	}
}

// What was decided at run time stays in force where the state was lost, and belongs to the state again.
func TestRescue(t *testing.T) {
	d := decidedAtRunTime(t)
	before := d.held()
	d.damage()
	d.start()
	d.same("after the damage", before)
	o, err := d.Status(t.Context(), 0)
	if err != nil || o.Health.State != "degraded" || len(o.Health.Problems) != 1 {
		t.Fatalf("%+v, %v", o.Health, err)
	}
	for _, word := range []string{"set aside as", "2 bans that the kernel held were kept", "2 allow entries", "the limits default, web, kernel-3",
		"the interface eth1", "the API's tokens", "on trial", "put a backup in the place of"} {
		if !strings.Contains(o.Health.Problems[0], word) || !strings.Contains(d.log.String(), word) {
			t.Errorf("%q is not said: %s", word, o.Health.Problems[0])
		}
	}
	web, err := d.Limit(t.Context(), "web")
	if err != nil || web.Source != state.FromAPI || web.Packets.String() != "20k/s" || web.Bits.String() != "3Mbit/s" {
		t.Errorf("%+v, %v", web, err)
	}
	if l, err := d.Limit(t.Context(), "default"); err != nil || l.Packets.String() != "100/m" || time.Duration(l.Penalty) != time.Minute {
		t.Errorf("%+v, %v", l, err)
	}
	for range 2 { // and it stays so, as part of the state
		d.restart()
		d.same("after another start", before)
	}
	// Each can be taken back.
	if err := d.RemoveLimit(t.Context(), "web"); err != nil {
		t.Error(err)
	}
	if web, err = d.Limit(t.Context(), "web"); err != nil || web.Source != state.FromConfig || web.Packets.String() != "10k/s" {
		t.Errorf("%+v, %v", web, err)
	}
	if r, err := d.Unallow(t.Context(), state.UnallowRequest{Prefixes: []string{"203.0.113.0/24", "2001:db8:1::/48"}}); err != nil || r.Done != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := d.Unban(t.Context(), state.UnbanRequest{Origin: state.OriginKernel}); err != nil || r.Done != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	d.want("")
}

// A start that ends after the damaged file was set aside, and before what the kernel holds was kept, must
// not make a decision of the emptiness that it leaves.
func TestRescueInterrupted(t *testing.T) {
	d := decidedAtRunTime(t)
	before := d.held()
	d.damage()
	d.kernel.schema = errors.New("out of memory")
	c, err := d.load()
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Config: c, Stderr: io.Discard, Kernel: d.kernel, System: d.system}); err == nil || !strings.Contains(err.Error(), "out of memory") {
		t.Fatal(err)
	}
	if aside, _ := filepath.Glob(filepath.Join(d.dir, "state.db.corrupt-*")); len(aside) != 1 {
		t.Fatalf("set aside: %q", aside)
	}
	d.same("after the start that failed", before)
	d.kernel.schema = nil
	d.start()
	d.same("after the next one", before)
	o, err := d.Status(t.Context(), 0)
	if err != nil || o.Health.State != "degraded" || !strings.Contains(strings.Join(o.Health.Problems, ""), "2 bans that the kernel held were kept") {
		t.Errorf("%+v, %v", o.Health, err)
	}
	d.restart()
	d.same("after a third", before)
}

// Where the tables were made anew in another size at the same time, what is in force stands in those that
// are replaced.
func TestRescueReplaced(t *testing.T) {
	d := decidedAtRunTime(t)
	before := d.held()
	d.damage()
	k := d.kernel
	allows, _ := fakeAllows{k}.All()
	k.replaced = kernel.Held{Bans: slices.Collect(fakeBans{k}.All()), Allows: allows, Limits: fakeLimits{k}.All()}
	clear(k.bans)
	clear(k.allows)
	clear(k.limits)
	d.start()
	k.replaced = kernel.Held{}
	d.same("after the damage", before)
}

// Where they are of another schema, nobody can tell what is in force: then it stays so, and the damaged
// file stays where it was, for the version that can.
func TestRescueOtherSchema(t *testing.T) {
	d := decidedAtRunTime(t)
	before := d.held()
	d.damage()
	path := filepath.Join(d.dir, "state.db")
	d.kernel.schema = &loader.SchemaError{Have: "7", Want: 8}
	c, err := d.load()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		err = Run(t.Context(), Options{Config: c, Stderr: io.Discard, Kernel: d.kernel, System: d.system})
		if err == nil {
			t.Fatal("it went on")
		}
		for _, word := range []string{"it is empty", "has schema 7, this program reads 8", "the shield stands as it was", "Start the version", "levee detach --all"} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q is not said: %v", word, err)
			}
		}
		if info, err := os.Stat(path); err != nil || info.Size() != 0 {
			t.Errorf("the damaged file is not where it was: %v, %v", info, err)
		}
		if aside, _ := filepath.Glob(path + ".corrupt-*"); len(aside) != 0 {
			t.Errorf("set aside: %q", aside)
		}
		d.same("after a start that gave up", before)
	}
	d.kernel.schema = nil // as the version that made them
	d.start()
	d.same("after a start of the version before", before)
}

// Of whatever is asked for, the kernel's figures say what it was.
func TestThresholdOf(t *testing.T) {
	for _, text := range []string{"1/h", "7/h", "59/m", "100/m", "1/s", "3/s", "7/s", "333/s", "20k/s", "999999/s", "3333333/s", "10M/s"} {
		want := threshold(t, text)
		exact := want.Rate.PerSecond()
		for _, off := range []float64{0, 1e-8} {
			if got := thresholdOf(kernel.Rate{PerSecond: exact * (1 - off), Burst: want.BurstUnits()}, false); got.Rate.PerSecond() != exact || got.Burst.Units != 0 {
				t.Errorf("%s: %s", text, got)
			}
		}
	}
	if got := thresholdOf(kernel.Rate{PerSecond: 100, Burst: 5000}, false); got.String() != "100/s burst 5k" {
		t.Errorf("%s", got)
	}
	if got := thresholdOf(kernel.Rate{PerSecond: 2e8, Burst: 16e6}, true); got.String() != "200Mbit/s burst 16Mbit" {
		t.Errorf("%s", got)
	}
	if got := thresholdOf(kernel.Rate{}, false); got != nil {
		t.Errorf("%s", got)
	}
}

// A daemon whose tables nobody asks must not say yes to anything.
func TestTablesNotReplaced(t *testing.T) {
	d := decidedAtRunTime(t)
	d.end()
	d.kernel.upgrade = fmt.Errorf("%w: no space left on device", loader.ErrNotReplaced)
	c, err := d.load()
	if err != nil {
		t.Fatal(err)
	}
	err = Run(t.Context(), Options{Config: c, Stderr: io.Discard, Kernel: d.kernel, System: d.system})
	if err == nil || !strings.Contains(err.Error(), "could not be replaced") || !strings.Contains(err.Error(), "the shield stands as it was") {
		t.Errorf("%v", err)
	}
	d.kernel.upgrade = nil
	d.start()
}
