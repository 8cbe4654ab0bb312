package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

// Whoever asks with many keys, or gets long answers, has his own forgotten and nobody else's.
func TestReplaysShared(t *testing.T) {
	p := newReplays()
	long := strings.Repeat("x", 1<<20)
	done := 0
	h := p.serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		done++
		fmt.Fprint(w, map[bool]string{true: long, false: "done"}[r.URL.Path == "/long"])
	}))
	send := func(scope state.Scope, id, key, path string) string {
		r := httptest.NewRequest("POST", path, strings.NewReader("{}"))
		r.Header.Set("Idempotency-Key", key)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r.WithContext(withActor(r.Context(), state.Actor{Kind: state.ActorToken, ID: id, Scopes: []state.Scope{scope}})))
		return w.Header().Get("Idempotency-Replayed")
	}
	send(state.ScopeBan, "one", "first", "/short")
	for _, path := range []string{"/short", "/long"} {
		for i := range 5000 {
			if path == "/long" && i == 50 {
				break
			}
			send(state.ScopeBan, "many", fmt.Sprint(path, i), path)
		}
		if p.bytes > maxKept || len(p.by) > maxKept/replayCost || len(p.by) != p.order.Len() {
			t.Errorf("%s: %d bytes of %d answers are kept", path, p.bytes, len(p.by))
		}
		if send(state.ScopeBan, "one", "first", "/short") != "true" {
			t.Errorf("%s: another's key was forgotten", path)
		}
	}
	if send(state.ScopeBan, "many", "/short0", "/short") != "" {
		t.Error("the oldest of many is still known")
	}
	if send(state.ScopeBan, "many", "/long49", "/long") != "true" {
		t.Error("the newest is forgotten")
	}
	for _, scope := range []state.Scope{state.ScopeRead, state.ScopeLimit} {
		send(scope, string(scope), "key", "/short")
		if want := map[bool]string{true: "true"}[scope != state.ScopeRead]; send(scope, string(scope), "key", "/short") != want {
			t.Errorf("%s: not %q", scope, want)
		}
	}
	n := 0
	for actor, bytes := range p.each {
		if bytes <= 0 {
			t.Errorf("%s has %d bytes", actor, bytes)
		}
		n += bytes
	}
	if n != p.bytes {
		t.Errorf("%d bytes of all actors, want %d", n, p.bytes)
	}
}
