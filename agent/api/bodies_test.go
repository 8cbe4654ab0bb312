package api

import (
	"errors"
	"io"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// A large body is read while others are worked on, and then waits for its turn; small ones do not wait
// for it, and what breaks it off is told as it was.
func TestLargeBodies(t *testing.T) {
	b := newBodies()
	b.work = newPlaces(1, 0)
	b.work.wait = 50 * time.Millisecond
	large := strings.Repeat("x", smallBody+1)
	free, ok := b.take(httptest.NewRequest("POST", "/v1/bans", strings.NewReader(large)), "a")
	if !ok {
		t.Fatal("no place")
	}
	slow := httptest.NewRequest("POST", "/v1/bans", strings.NewReader(large))
	if _, ok := b.take(slow, "b"); ok {
		t.Error("two are worked on at once")
	}
	if n := len(b.large.all); n != 1 {
		t.Errorf("%d places are taken, want 1", n)
	}
	small, ok := b.take(httptest.NewRequest("POST", "/v1/bans", strings.NewReader("{}")), "b")
	if !ok {
		t.Fatal("a small one waits")
	}
	small()
	free()
	broken := errors.New("broken off")
	r := httptest.NewRequest("POST", "/v1/bans", io.MultiReader(strings.NewReader(large), iotest.ErrReader(broken)))
	r.ContentLength = -1
	free, ok = b.take(r, "b")
	if !ok {
		t.Fatal("no place is left")
	}
	if text, err := io.ReadAll(r.Body); string(text) != large || !errors.Is(err, broken) {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	free()
	for name, p := range map[string]*places{"small": b.small, "large": b.large, "work": b.work} {
		if len(p.all) != 0 || len(p.by) != 0 {
			t.Errorf("%s: %d places are still taken, of %d actors", name, len(p.all), len(p.by))
		}
	}
}
