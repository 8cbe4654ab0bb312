package state

import (
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"
)

// Who looks at every claim lets those pass that wait to change one.
func TestInSteps(t *testing.T) {
	h := open(t)
	many := make([]Proposal, 3*chunk)
	for i := range many {
		many[i] = Proposal{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32), Origin: "operator"}
	}
	if _, err := h.Propose(many); err != nil {
		t.Fatal(err)
	}
	var passed atomic.Bool
	done := make(chan struct{})
	seen := 0
	for slot := range h.inSteps() {
		if seen++; seen == 1 {
			go func() {
				h.mu.Lock()
				passed.Store(true)
				h.mu.Unlock()
				close(done)
			}()
			for h.mu.TryRLock() { // until somebody waits for the lock
				h.mu.RUnlock()
				runtime.Gosched()
			}
		}
		if passed.Load() != (slot > chunk) {
			t.Fatalf("at %d, a change has passed: %v", slot, passed.Load())
		}
	}
	<-done
	if seen != len(many) {
		t.Errorf("%d claims seen, there are %d", seen, len(many))
	}
	for range h.inSteps() {
		break
	}
	if !h.mu.TryLock() {
		t.Fatal("the lock is held after the end")
	}
	h.mu.Unlock()
}
