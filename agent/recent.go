package agent

import (
	"net/netip"
	"sync"

	"github.com/levee-xdp/levee/maps"
)

// recent keeps the last sampled packets.
type recent struct {
	mu   sync.Mutex
	ring [1024]maps.Event
	next int
}

func (r *recent) add(e maps.Event) {
	e.Packet = nil
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ring[r.next%len(r.ring)] = e
	r.next++
}

// of returns the last packets of a source, the newest first, at most a number of them.
func (r *recent) of(addr netip.Addr, most int) []maps.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []maps.Event
	for i := r.next - 1; i >= 0 && i >= r.next-len(r.ring) && len(out) < most; i-- {
		if e := r.ring[i%len(r.ring)]; e.Source == addr {
			out = append(out, e)
		}
	}
	return out
}
