package agent

import (
	"encoding/binary"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	kernel "github.com/levee-xdp/levee/maps"
)

// doubtful damages one of the two heads of the state: the older one, or the one of the last change.
func (d *testDaemon) doubtful(last bool) {
	d.Helper()
	f, err := os.OpenFile(d.statePath(), os.O_RDWR, 0)
	if err != nil {
		d.Fatal(err)
	}
	defer f.Close()
	page := int64(os.Getpagesize())
	var tx [2]uint64
	for i := range tx {
		var b [8]byte
		if _, err := f.ReadAt(b[:], int64(i)*page+16+48); err != nil {
			d.Fatal(err)
		}
		tx[i] = binary.NativeEndian.Uint64(b[:])
	}
	which := int64(0)
	if tx[1] > tx[0] == last {
		which = 1
	}
	if _, err := f.WriteAt([]byte{0xff}, which*page+16+60); err != nil {
		d.Fatal(err)
	}
}

// A head of the state that is bad must not make a change stay that is on trial: neither one whose time has
// come while the daemon was down, nor one that came last, and which the state has lost.
func TestRescueOnTrial(t *testing.T) {
	const before = "banned [192.0.2.200/32] allowed [203.0.113.0/24]"
	in := func(d *testDaemon) string {
		text, _, _ := strings.Cut(d.on(), " limit")
		return strings.Replace(text, " 192.0.2.255/32", "", 1) // what moves the clock
	}
	web := state.LimitSpec{Services: services(t, "tcp/443"), Packets: threshold(t, "7/s")}
	ban := func(d *testDaemon) error {
		_, err := d.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.1"}, {Prefix: "2001:db8::/48", Origin: "api:x"}}, Confirm: 10 * second})
		return err
	}
	allow := func(d *testDaemon) error {
		_, err := d.Allow(t.Context(), state.AllowRequest{Allow: []state.AllowItem{{Prefix: "198.51.100.1"}}, Confirm: 10 * second})
		return err
	}
	limit := func(d *testDaemon) error {
		_, err := d.SetLimitOnTrial(t.Context(), "web", web, 10*second)
		return err
	}
	for name, tt := range map[string]struct {
		try  []func(*testDaemon) error
		last bool
	}{
		"nothing was lost":     {[]func(*testDaemon) error{ban, allow, limit}, false},
		"the ban was lost":     {[]func(*testDaemon) error{ban}, true},
		"the allow was lost":   {[]func(*testDaemon) error{allow}, true},
		"the limit was lost":   {[]func(*testDaemon) error{limit}, true},
		"the last of many was": {[]func(*testDaemon) error{ban, allow, limit}, true},
	} {
		for when, down := range map[string]time.Duration{"due": time.Minute, "pending": time.Second} {
			t.Run(name+"/"+when, func(t *testing.T) {
				d, clock := onClock(t)
				d.ban(state.BanItem{Prefix: "192.0.2.200", Origin: "operator"})
				if _, err := d.Allow(t.Context(), state.AllowRequest{Allow: []state.AllowItem{{Prefix: "203.0.113.0/24"}}}); err != nil {
					t.Fatal(err)
				}
				limits := len(d.kernel.limits)
				for _, try := range tt.try {
					if err := try(d); err != nil {
						t.Fatal(err)
					}
				}
				if in(d) == before && len(d.kernel.limits) == limits {
					t.Fatal("nothing is on trial")
				}
				d.end()
				d.doubtful(tt.last)
				clock.advance(down)
				d.start()
				if !strings.Contains(d.problems(), "its last change may be lost") {
					t.Errorf("the damage was not noticed: %s", d.problems())
				}
				if down < 10*time.Second {
					d.past(clock, time.Minute)
				}
				d.awaitOver()
				for range 2 {
					if got := in(d); got != before || len(d.kernel.limits) != limits {
						t.Errorf("after the trial: %s, %d limits\nbefore: %s, %d limits", got, len(d.kernel.limits), before, limits)
					}
					d.restart()
				}
			})
		}
	}
}

// Nor may it make an import stay that was cut short, and is taken back at start.
func TestRescueCutShort(t *testing.T) {
	d := newDaemon(t, newFakeKernel(), plainText)
	d.ban(state.BanItem{Prefix: "192.0.2.200", Origin: "operator"})
	d.end()
	left, err := state.Open(state.Config{Path: d.statePath()})
	if err != nil {
		t.Fatal(err)
	}
	parts := []state.Proposal{{Prefix: netip.MustParsePrefix("198.51.100.1/32"), Origin: "feed:x"}, {Prefix: netip.MustParsePrefix("192.0.2.200/32"), Origin: "feed:x"}}
	for _, p := range parts {
		if err := left.ProposeWhole([]state.Proposal{p}, make([]state.Outcome, 1)); err != nil {
			t.Fatal(err)
		}
		d.kernel.bans[p.Prefix] = kernel.Ban{Prefix: p.Prefix, Expires: bpf.Forever}
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	d.doubtful(false)
	d.start()
	d.want("192.0.2.200/32")
	d.restart()
	d.want("192.0.2.200/32")
}
