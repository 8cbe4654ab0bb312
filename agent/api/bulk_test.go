package api

import (
	"context"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// The deadline moves on with lines that ask for something, and with no others: who sends but line ends
// and comments is not waited for.
func TestBulkPatience(t *testing.T) {
	for line, want := range map[string]int{"\n": 1, "# nothing\n": 1, "192.0.2.1\n": 3, "nonsense\n": 3} {
		extended, asked := 0, 0
		err := eachLine(strings.NewReader(strings.Repeat(line, 2*bulkLines+100)), func() { extended++ }, plainLine,
			func(state.BulkLine) bool { asked++; return true })
		if err != nil || extended != want {
			t.Errorf("%q: extended %d times, want %d; %d asked, %v", line, extended, want, asked, err)
		}
	}
}

// bulky is a backend that is busy with bulks until they are let go of.
type bulky struct {
	stub
	under, hold chan struct{}
}

func (b *bulky) BanBulk(state.Actor, state.BulkRequest, state.BulkLines) (state.BulkResponse, error) {
	b.under <- struct{}{}
	<-b.hold
	return state.BulkResponse{Lines: 1, Added: 1}, nil
}

// Few bulks that are kept until their end is known are under way at once, and one of an actor; others
// need no such place.
func TestBulkWholePlaces(t *testing.T) {
	b := &bulky{under: make(chan struct{}), hold: make(chan struct{})}
	h := Handler(Config{Backend: b})
	all := weights{whole: outsideWeights()[whole]} // of everything else there is any number
	all[whole].wait = 50 * time.Millisecond
	send := func(token, query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequest("POST", bulkPath+query, strings.NewReader("192.0.2.1\n"))
		r.Header.Set("Content-Type", plainLines)
		by := state.Actor{Kind: state.ActorToken, ID: token, Scopes: []state.Scope{state.ScopeBan}}
		h.ServeHTTP(w, r.WithContext(context.WithValue(withActor(r.Context(), by), weightsKey{}, all)))
		return w
	}
	answered := make(chan int, 10)
	begin := func(token, query string) {
		go func() { answered <- send(token, query).Code }()
		<-b.under
	}
	refused := func(token string) {
		t.Helper()
		answer := make(chan *httptest.ResponseRecorder, 1)
		go func() { answer <- send(token, "?whole=true") }()
		select {
		case w := <-answer:
			if w.Code != 503 || w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), `"busy"`) {
				t.Errorf("%s: %d %s %s", token, w.Code, fmt.Sprint(w.Header()), w.Body)
			}
		case <-b.under:
			t.Fatalf("%s found a place", token)
		}
	}
	begin("a", "?whole=true")
	refused("a")
	begin("a", "")
	begin("b", "?whole=true")
	refused("c")
	close(b.hold)
	for range 3 {
		if code := <-answered; code != 200 {
			t.Errorf("%d", code)
		}
	}
}

// A line of JSON says one thing, as every other body does.
func TestStrictLines(t *testing.T) {
	for _, line := range []string{`{"prefix":"192.0.2.1","prefix":"198.51.100.1"}`, `{"prefix":"192.0.2.1","Prefix":"198.51.100.1"}`,
		`{"prefix":"192.0.2.1"}}`, "{\"prefix\":\"192.0.2.1\",\"reason\":\"\xff\"}"} {
		if item, err := jsonLine([]byte(line)); err == nil {
			t.Errorf("%q is taken as %+v", line, item)
		}
	}
	if item, err := jsonLine([]byte(`{"prefix": "192.0.2.1", "monitor": true}`)); err != nil || item.Prefix != "192.0.2.1" || !item.Monitor {
		t.Errorf("%+v, %v", item, err)
	}
}
