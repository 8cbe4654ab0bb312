package api

import (
	"net"
	"testing"
	"time"
)

// A peer that connects too often pushes nobody out; one that does not, pushes out who waits longest.
func TestGateRate(t *testing.T) {
	g := newGate(nil, 2, 0, newRates(Rate{PerSecond: 1e-9, Burst: 1}), nil)
	closed := map[string]bool{}
	admit := func(key string) bool {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { theirs.Close() })
		return g.admit(&held{Conn: closing{ours, func() { closed[key] = true }}, gate: g, key: key})
	}
	if !admit("a") || !admit("b") {
		t.Fatal("there is room, and nobody got in")
	}
	time.Sleep(grace) // now they would make room
	for _, key := range []string{"a", "b"} {
		if admit(key) {
			t.Errorf("%s got in, more often than it may", key)
		}
	}
	if len(closed) != 0 || g.taken != 2 {
		t.Errorf("%v were pushed out, %d slots are taken", closed, g.taken)
	}
	if !admit("c") || !closed["a"] || closed["b"] || g.taken != 2 {
		t.Errorf("%v were pushed out, %d slots are taken", closed, g.taken)
	}
}

type closing struct {
	net.Conn
	closed func()
}

func (c closing) Close() error { c.closed(); return c.Conn.Close() }
