package api

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

// A large body is read while others are worked on, and then waits for its turn; small ones do not wait
// for it, and what breaks it off is told as it was.
func TestLargeBodies(t *testing.T) {
	b := insideBodies()
	b.work = newPlaces(1, 0)
	b.work.wait = 50 * time.Millisecond
	answer := httptest.NewRecorder()
	take := func(r *http.Request, actor string) (free func(), ok bool) {
		_, free, ok = b.take(answer, r, actor)
		return free, ok
	}
	large := strings.Repeat("x", smallBody+1)
	free, ok := take(httptest.NewRequest("POST", "/v1/bans", strings.NewReader(large)), "a")
	if !ok {
		t.Fatal("no place")
	}
	slow := httptest.NewRequest("POST", "/v1/bans", strings.NewReader(large))
	if _, ok := take(slow, "b"); ok {
		t.Error("two are worked on at once")
	}
	if n := len(b.large.all); n != 1 {
		t.Errorf("%d places are taken, want 1", n)
	}
	small, ok := take(httptest.NewRequest("POST", "/v1/bans", strings.NewReader("{}")), "b")
	if !ok {
		t.Fatal("a small one waits")
	}
	small()
	free()
	broken := errors.New("broken off")
	r := httptest.NewRequest("POST", "/v1/bans", io.MultiReader(strings.NewReader(large), iotest.ErrReader(broken)))
	r.ContentLength = -1
	free, ok = take(r, "b")
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

// Who does not take his answer keeps nobody else's large body waiting.
func TestLargeAnswers(t *testing.T) {
	b := outsideBodies()
	b.work = newPlaces(1, 0)
	b.work.wait = 50 * time.Millisecond
	request := func() *http.Request {
		return httptest.NewRequest("POST", "/v1/bans", strings.NewReader(strings.Repeat("x", smallBody+1)))
	}
	w, free, ok := b.take(httptest.NewRecorder(), request(), "a")
	if !ok {
		t.Fatal("no place")
	}
	w.WriteHeader(http.StatusOK)
	if _, _, ok := b.take(httptest.NewRecorder(), request(), "b"); ok {
		t.Error("two are worked on at once")
	}
	if _, err := w.Write([]byte("{}")); err != nil {
		t.Fatal(err)
	}
	_, second, ok := b.take(httptest.NewRecorder(), request(), "b")
	if !ok {
		t.Fatal("one that is answered is still worked on")
	}
	free()
	if n := len(b.work.all); n != 1 {
		t.Errorf("%d are worked on, want 1", n)
	}
	second()
}

// Two actors that hold on to their places leave some to others, of whatever kind; and each has one, whatever
// the others hold.
func TestPlacesAreShared(t *testing.T) {
	for _, tt := range []struct{ all, each int }{{4, 2}, {8, 2}, {128, 32}, {2, 1}, {2, 2}, {3, 3}} {
		p := newPlaces(tt.all, tt.each)
		p.wait = 10 * time.Millisecond
		var free []func()
		hold := func(actor string) (n int) {
			for {
				f, ok := p.take(t.Context(), actor)
				if !ok {
					return n
				}
				n, free = n+1, append(free, f)
			}
		}
		a, b := hold("a"), hold("b")
		if most := min(tt.each, max(1, tt.all/2)); a != most || b < 1 || b > a {
			t.Errorf("%d places, %d each: a took %d, not %d, and b %d", tt.all, tt.each, a, most, b)
		}
		if c := hold("c"); tt.all > 2 && c < 1 {
			t.Errorf("%d places, %d each: a took %d and b %d, and c found none", tt.all, tt.each, a, b)
		}
		for _, f := range free {
			f()
		}
		if len(p.all) != 0 || len(p.more) != 0 || len(p.by) != 0 {
			t.Errorf("%d places, %d each: %d are still taken, %d beyond the first, of %d actors", tt.all, tt.each, len(p.all), len(p.more), len(p.by))
		}
		if again := hold("b"); again != a {
			t.Errorf("%d places, %d each: b finds %d when all are free, a found %d", tt.all, tt.each, again, a)
		}
	}
}

// Of other hosts' small bodies one actor's take a share of the places, however slowly they come; on the
// Unix socket all may be root's.
func TestSmallBodies(t *testing.T) {
	for _, tt := range []struct {
		name string
		*bodies
		shared bool
	}{{"outside", outsideBodies(), true}, {"inside", insideBodies(), false}} {
		tt.small.wait = 10 * time.Millisecond
		take := func(actor string) bool {
			_, _, ok := tt.take(httptest.NewRecorder(), httptest.NewRequest("POST", "/v1/bans", strings.NewReader("{}")), actor)
			return ok
		}
		n := 0
		for n < cap(tt.small.all) && take("a") {
			n++
		}
		if shared := n <= cap(tt.small.all)/4; shared != tt.shared {
			t.Errorf("%s: one takes %d places of %d", tt.name, n, cap(tt.small.all))
		}
		if tt.shared && !take("b") {
			t.Errorf("%s: another finds none", tt.name)
		}
	}
}
