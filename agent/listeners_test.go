package agent

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/config"
)

// A daemon whose ports are another process's runs, says so, and answers there when they are free.
func TestPortsTaken(t *testing.T) {
	d := newSecure(t, "", "")
	d.end()
	var others []net.Listener
	for _, address := range []string{d.address, "127.0.0.1:0"} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		others = append(others, l)
	}
	d.flags = func(c *config.Config) { c.Metrics.Listen = others[1].Addr().String() }
	d.start()
	said := func(address string) bool {
		h, err := d.Health(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(h.Problems, func(p string) bool {
			return strings.Contains(p, "nothing is served at "+address) && strings.Contains(p, "already in use")
		})
	}
	for _, other := range others {
		address := other.Addr().String()
		if !said(address) {
			t.Errorf("nothing is said of %s\n%s", address, d.log)
		}
		if err := other.Close(); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			c, err := net.Dial("tcp", address)
			if err == nil {
				c.Close()
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%v\n%s", err, d.log)
			}
		}
		if said(address) {
			t.Errorf("%s is had, and said to be another process's", address)
		}
	}
}
