package agent

import (
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/config"
)

// TestMetricsPortTaken starts the daemon while somebody else has the port of its metrics: it shields, says so,
// and serves them when the port is free.
func TestMetricsPortTaken(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := other.Addr().String()
	d := newDaemon(t, newFakeKernel(), "")
	d.end()
	d.flags = func(c *config.Config) { c.Metrics.Listen = address }
	d.start()
	said := func() bool {
		h, err := d.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(h.Problems, func(p string) bool {
			return strings.Contains(p, "not served at "+address) && strings.Contains(p, "already in use")
		})
	}
	if !said() {
		t.Errorf("nothing is said of the port\n%s", d.log)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		r, err := http.Get("http://" + address + "/readyz")
		if err == nil {
			if err := r.Body.Close(); err != nil {
				t.Fatal(err)
			}
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%v\n%s", err, d.log)
		}
	}
	if said() {
		t.Errorf("the port is had, and said to be somebody else's")
	}
}
