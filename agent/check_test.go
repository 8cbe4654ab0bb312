package agent

import (
	"net/netip"
	"reflect"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

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
