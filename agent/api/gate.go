package api

import (
	"container/list"
	"crypto/tls"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// gate is a listener that hands out a bounded number of slots, some of them to one peer. Where all are
// taken, the connection that has waited longest without a request under way makes room: so those who
// only hold connections push out each other, and whoever asks for something gets in.
type gate struct {
	net.Listener
	most  int              // connections in all
	each  int              // of one peer; 0: no bound
	rates *rates           // of new connections of one peer; nil: no bound
	peer  func(*held) bool // finds out who is there; false: nobody who may come in

	mu      sync.Mutex
	waiting *list.List // *held without a request under way, the longest first
	taken   int
	peers   map[string]int
}

func newGate(l net.Listener, most, each int, r *rates, peer func(*held) bool) *gate {
	return &gate{Listener: l, most: most, each: each, rates: r, peer: peer, waiting: list.New(), peers: map[string]int{}}
}

// held is a connection that has a slot.
type held struct {
	net.Conn
	gate *gate
	key  string // of the peer; empty: it has no bound
	cred cred   // of a peer on the Unix socket

	// The configuration by which a client certificate was verified last; requests of HTTP/2 share it.
	verified atomic.Pointer[tls.Config]

	// Guarded by the gate.
	under  int           // requests under way
	place  *list.Element // among those that wait; nil while a request is under way
	since  time.Time     // when it began to wait
	closed bool
}

// Accept returns the next connection that has a slot. It does not wait for anybody to leave.
func (g *gate) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			if isTemporary(err) {
				time.Sleep(5 * time.Millisecond) // no descriptors are left: some are about to be
				continue
			}
			return nil, err
		}
		h := &held{Conn: c, gate: g}
		if !g.peer(h) || !g.admit(h) {
			_ = c.Close() // nobody was told anything yet
			continue
		}
		return h, nil
	}
}

func isTemporary(err error) bool {
	var e interface{ Temporary() bool }
	return errors.As(err, &e) && e.Temporary()
}

// grace is how long a connection may wait before it has to make room: who has just connected gets to
// ask. A flood of connections is slowed down by it, to as many as there are slots in this time.
const grace = 50 * time.Millisecond

func (g *gate) admit(h *held) bool {
	// The rate first: whom it refuses pushes nobody out.
	if h.key != "" && g.rates != nil && g.rates.allow(h.key) > 0 {
		return false
	}
	g.mu.Lock()
	for front := g.waiting.Front(); g.taken >= g.most && front != nil; front = g.waiting.Front() {
		young := grace - time.Since(front.Value.(*held).since)
		if young <= 0 {
			break
		}
		g.mu.Unlock()
		time.Sleep(young)
		g.mu.Lock()
	}
	if h.key != "" && (g.each > 0 && g.peers[h.key] >= g.each) {
		g.mu.Unlock()
		return false
	}
	var out *held
	if g.taken >= g.most {
		front := g.waiting.Front()
		if front == nil {
			g.mu.Unlock()
			return false
		}
		out = front.Value.(*held)
		g.release(out)
	}
	g.taken++
	if h.key != "" {
		g.peers[h.key]++
	}
	h.wait()
	g.mu.Unlock()
	if out != nil {
		_ = out.Conn.Close() // it is in nobody's use
	}
	return true
}

// release frees a connection's slot; the gate's lock is held.
func (g *gate) release(h *held) {
	if h.closed {
		return
	}
	h.closed = true
	g.taken--
	if h.key != "" {
		if g.peers[h.key]--; g.peers[h.key] == 0 {
			delete(g.peers, h.key)
		}
	}
	if h.place != nil {
		g.waiting.Remove(h.place)
		h.place = nil
	}
}

// Close closes the connection and frees its slot.
func (h *held) Close() error {
	h.gate.mu.Lock()
	h.gate.release(h)
	h.gate.mu.Unlock()
	return h.Conn.Close()
}

// begin notes that a request is under way on the connection, and end that it is over.
func (h *held) begin() {
	g := h.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if h.under++; h.place != nil {
		g.waiting.Remove(h.place)
		h.place = nil
	}
}

func (h *held) end() {
	g := h.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if h.under--; h.under == 0 && !h.closed {
		h.wait()
	}
}

// wait puts a connection behind those that wait; the gate's lock is held.
func (h *held) wait() {
	h.since = time.Now()
	h.place = h.gate.waiting.PushBack(h)
}

// addressKey is the peer that an address belongs to: an IPv4 address, or an IPv6 /64, of which one
// host may have every address.
func addressKey(a netip.Addr) string {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, err := a.Prefix(64)
		if err == nil {
			return p.String()
		}
	}
	return a.String()
}

// remoteOf is where a connection comes from; zero for a Unix socket's.
func remoteOf(c net.Conn) netip.AddrPort {
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}
