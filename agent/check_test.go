package agent

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
	kernel "github.com/levee-xdp/levee/maps"
)

// A ban that would hold is told apart from one that only monitors.
func TestCheckMonitored(t *testing.T) {
	for name, tt := range map[string]struct {
		text   string
		item   state.BanItem
		words  string
		source bool // the source's limit only monitors, too
	}{
		"the daemon": {"mode: monitor\n", state.BanItem{}, "passes, and is counted: the daemon only monitors; else the ban of 203.0.113.0/24 would hold", true},
		"the ban":    {"", state.BanItem{Monitor: true}, "passes, and is counted: the ban of 203.0.113.0/24 only monitors", false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newFakeKernel()
			k.sources = []kernel.Source{{Prefix: netip.MustParsePrefix("203.0.113.7/32"), Dropped: 5}}
			d := newDaemon(t, k, "interfaces: [eth0]\nlimits: {default: {packets: 1k/s}}\n"+tt.text)
			tt.item.Prefix = "203.0.113.0/24"
			if _, err := d.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{tt.item}}); err != nil {
				t.Fatal(err)
			}
			c, err := d.Check(t.Context(), netip.MustParseAddr("203.0.113.7"))
			if err != nil || c.Verdict != state.VerdictMonitored || c.Words != tt.words {
				t.Errorf("%v, %s, %q; want %q", err, c.Verdict, c.Words, tt.words)
			}
			if len(c.Sources) != 1 || c.Sources[0].Monitored != tt.source {
				t.Errorf("%+v", c.Sources)
			}
		})
	}
}

// An address that nothing drops is told what holds it, and no limit that there is not.
func TestCheckPassing(t *testing.T) {
	const allowed = "allow: [{prefix: 198.51.100.0/24, no_limits: true}]\n"
	for name, tt := range map[string]struct {
		text, address, words string
		limits               []string
	}{
		"no limit":           {"", "192.0.2.1", "passes: no ban touches it, and no limit is set for it", []string{}},
		"another's limit":    {"limits: {office: {sources: [198.51.100.0/24], packets: 1k/s}}\n", "192.0.2.1", "passes: no ban touches it, and no limit is set for it", []string{}},
		"enforced":           {"limits: {default: {packets: 1k/s}}\n", "192.0.2.1", "passes, as long as it keeps to its limit", []string{"default"}},
		"one is enforced":    {"limits: {default: {packets: 1k/s, mode: monitor}, dns: {services: [udp/53], udp: 1k/s}}\n", "192.0.2.1", "passes, as long as it keeps to its limit", []string{"dns", "default"}},
		"monitored":          {"limits: {default: {packets: 1k/s, mode: monitor}}\n", "192.0.2.1", "passes, and is counted where it breaks a limit: that only monitors", []string{"default"}},
		"all is monitored":   {"mode: monitor\nlimits: {default: {packets: 1k/s}}\n", "192.0.2.1", "passes, and is counted where it breaks a limit: that only monitors", []string{"default"}},
		"exempt":             {allowed + "limits: {default: {packets: 1k/s}}\n", "198.51.100.7", "passes: the allow entry 198.51.100.0/24 exempts it from limits", []string{"default"}},
		"exempt are not all": {allowed + "limits: {default: {packets: 1k/s}}\n", "192.0.2.1", "passes, as long as it keeps to its limit", []string{"default"}},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t, newFakeKernel(), "interfaces: [eth0]\n"+tt.text)
			c, err := d.Check(t.Context(), netip.MustParseAddr(tt.address))
			if err != nil || c.Verdict != state.VerdictPasses || c.Words != tt.words || !reflect.DeepEqual(c.Limits, tt.limits) {
				t.Errorf("%v, %s, %q, %q; want %q, %q", err, c.Verdict, c.Words, c.Limits, tt.words, tt.limits)
			}
		})
	}
}
