package api

import (
	"context"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// slow is a backend whose readings take until they are let go of.
type slow struct {
	stub
	under chan struct{} // one for each that is under way
	hold  chan struct{}
}

func (s *slow) CheckPrefix(ctx context.Context, _ netip.Prefix) (state.PrefixCheck, error) {
	return state.PrefixCheck{}, s.wait(ctx)
}

func (s *slow) Sources(ctx context.Context, _ state.Order, _ int, _ time.Duration) (state.SourceList, error) {
	return state.SourceList{}, s.wait(ctx)
}

func (s *slow) RemoveLimit(state.Actor, string) error { return s.wait(context.Background()) }

func (s *slow) wait(ctx context.Context) error {
	s.under <- struct{}{}
	defer func() { <-s.under }()
	select {
	case <-s.hold:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// What reads whole tables is under way a few times at once, and of one actor fewer; others are told to
// come again, what is light is answered, and who goes away leaves a place.
func TestHeavyReads(t *testing.T) {
	s := &slow{under: make(chan struct{}, 100), hold: make(chan struct{})}
	h := Handler(Config{Backend: s})
	outside, inside := outsideWeights(), insideWeights()
	outside[scan] = newPlaces(2, 1)
	for _, w := range []weight{scan, measure} {
		outside[w].wait, inside[w].wait = 50*time.Millisecond, 50*time.Millisecond
	}
	const long = "/v1/sources?sample=10s&n=10000"
	const check = "/v1/check?prefix=0.0.0.0/0"
	send := func(ctx context.Context, all weights, token, path string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		by := state.Actor{Kind: state.ActorToken, ID: token, Scopes: []state.Scope{state.ScopeRead}}
		ctx = context.WithValue(withActor(ctx, by), weightsKey{}, all)
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil).WithContext(ctx))
		return w
	}
	ctx, gone := context.WithCancel(t.Context())
	answered := make(chan int, 100)
	begin := func(ctx context.Context, all weights, token, path string) {
		n := len(s.under)
		go func() { answered <- send(ctx, all, token, path).Code }()
		for deadline := time.Now().Add(10 * time.Second); len(s.under) == n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s of %s is not under way", path, token)
			}
		}
	}
	refused := func(all weights, token, path string) {
		t.Helper()
		w := send(t.Context(), all, token, path)
		if w.Code != 503 || w.Header().Get("Retry-After") != "1" || w.Header().Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s of %s: %d %s %s", path, token, w.Code, w.Header(), w.Body)
		}
	}
	begin(ctx, outside, "a", long)
	begin(t.Context(), outside, "a", long)
	refused(outside, "a", long)
	begin(t.Context(), outside, "a", check)
	refused(outside, "a", check)
	refused(outside, "a", "/v1/sources?sample=1ms")
	if w := send(t.Context(), outside, "a", "/v1/stats"); w.Code != 200 {
		t.Errorf("a light one: %d %s", w.Code, w.Body)
	}
	for _, token := range []string{"b", "c", "b", "c", "d"} {
		begin(t.Context(), outside, token, long)
	}
	refused(outside, "d", long) // a, b and c have a second one: that is all beyond one each
	begin(t.Context(), outside, "f", long)
	begin(t.Context(), outside, "b", "/v1/sources")
	refused(outside, "e", long)
	refused(outside, "e", "/v1/status?sample=1s")
	refused(outside, "e", "/v1/status")
	refused(outside, "e", check)
	refused(outside, "e", "/v1/allow")
	refused(outside, "e", "/v1/config")
	begin(t.Context(), inside, "root", long)
	begin(t.Context(), inside, "root", check)
	gone()
	<-answered
	begin(t.Context(), outside, "e", long)
	close(s.hold)
	for range 12 {
		if code := <-answered; code != 200 {
			t.Errorf("%d", code)
		}
	}
	for name, all := range map[string]weights{"outside": outside, "inside": inside} {
		for w, p := range all {
			if len(p.all) != 0 || len(p.by) != 0 {
				t.Errorf("%s: places of %d are still taken: %d of %d actors", name, w, len(p.all), len(p.by))
			}
		}
	}
}

// However many change limits from other hosts, one of them at most is before who does so on this one.
func TestLimitsOneByOne(t *testing.T) {
	s := &slow{under: make(chan struct{}, 100), hold: make(chan struct{})}
	h := Handler(Config{Backend: s})
	outside, inside := outsideWeights(), insideWeights()
	outside[settle].wait = 50 * time.Millisecond
	send := func(all weights, token string) int {
		w := httptest.NewRecorder()
		ctx := withActor(t.Context(), state.Actor{Kind: state.ActorToken, ID: token, Scopes: []state.Scope{state.ScopeLimit}})
		h.ServeHTTP(w, httptest.NewRequest("DELETE", "/v1/limits/web", nil).WithContext(context.WithValue(ctx, weightsKey{}, all)))
		return w.Code
	}
	first, root := make(chan int), make(chan int)
	under := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); len(s.under) != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d are under way, want %d", len(s.under), n)
			}
		}
	}
	go func() { first <- send(outside, "a") }()
	under(1)
	for _, token := range []string{"a", "b"} {
		if code := send(outside, token); code != 503 {
			t.Errorf("another of %s: %d", token, code)
		}
	}
	go func() { root <- send(inside, "root") }()
	under(2)
	close(s.hold)
	if a, b := <-first, <-root; a != 204 || b != 204 {
		t.Errorf("%d and %d", a, b)
	}
}
