package protect

import (
	"net/netip"
	"time"
)

// maxOfActor bounds how many addresses one token or certificate protects: more than the machines that
// one is meant for, and few enough that nobody pushes out others'.
const maxOfActor = 16

// wakeEvery is how often a new client may have the system looked at before its time.
const wakeEvery = time.Second

// client is an address, and by whose credentials somebody there is known.
type client struct {
	prefix netip.Prefix
	actor  string
}

// clients is who was seen, and when by the monotonic clock, in ns.
type clients map[client]uint64

// see notes that a client was there, and tells whether it is a new one.
func (c clients) see(now uint64, at client) (isNew bool) {
	if _, known := c[at]; known {
		c[at] = now
		return false
	}
	c[at] = now
	if n, oldest := c.of(at.actor); n > maxOfActor {
		delete(c, oldest)
	}
	if len(c) > maxPeers { // of many actors: the one that has most gives way
		each := map[string]int{}
		for k := range c {
			each[k.actor]++
		}
		var out client
		for k, seen := range c {
			if n := each[k.actor] - each[out.actor]; n > 0 || n == 0 && seen < c[out] {
				out = k
			}
		}
		delete(c, out)
	}
	return true
}

// of counts an actor's clients, and finds the one that was seen longest ago.
func (c clients) of(actor string) (n int, oldest client) {
	for k, seen := range c {
		if k.actor != actor {
			continue
		}
		if n++; n == 1 || seen < c[oldest] {
			oldest = k
		}
	}
	return n, oldest
}

// lately forgets who was not seen for long, and returns the others in order.
func (c clients) lately(now uint64) []Found {
	p := peers{}
	for k, seen := range c {
		p[k.prefix] = peer{"a client of this daemon's API", max(seen, p[k.prefix].seen)}
		if now-min(seen, now) > uint64(Linger) {
			delete(c, k)
		}
	}
	return p.lately(now)
}

// Client notes that somebody at an address may change what is banned, by an actor's credentials. It
// does not wait.
func (f *Finder) Client(addr netip.Addr, actor string) {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsLoopback() {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients.see(f.Clock.Monotonic(), client{netip.PrefixFrom(addr, addr.BitLen()), actor}) && f.kinds.API {
		f.nudge()
	}
}

// Forget has an actor's credentials protect nobody any more. It comes into force as a new client does.
func (f *Finder) Forget(actor string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k := range f.clients {
		if k.actor == actor {
			delete(f.clients, k)
			f.nudge()
		}
	}
}

func (f *Finder) nudge() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
