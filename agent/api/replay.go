package api

import (
	"bytes"
	"container/list"
	"crypto/sha256"
	"errors"
	"io"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Bounds of the answers that are kept for requests which are made again.
const (
	replayLife = time.Hour
	maxKept    = 32 << 20 // bytes, of answers and what each costs beside
	replayCost = 8 << 10  // bytes that one counts beside its answer: so there are 4,096 at most
	maxKey     = 128      // bytes of a key
)

// replays keeps answers by who asked and the Idempotency-Key they gave, so that a request which is
// made again, because its answer got lost, is not done again.
type replays struct {
	now func() time.Time

	mu    sync.Mutex
	by    map[replayKey]*list.Element
	order *list.List // *replay, the oldest first
	bytes int
	each  map[string]int // bytes, by actor
}

type replayKey struct{ actor, key string }

type replay struct {
	key     replayKey
	request [sha256.Size]byte // of the method, the path and the body
	at      time.Time
	done    bool // else it is under way
	status  int
	header  http.Header
	body    []byte
}

func newReplays() *replays {
	return &replays{now: time.Now, by: map[replayKey]*list.Element{}, order: list.New(), each: map[string]int{}}
}

func (p *replays) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		keys := r.Header.Values("Idempotency-Key")
		by := actorOf(r.Context())
		mayChange := by.May(state.ScopeBan) || by.May(state.ScopeLimit) // else it is refused unread
		if r.Method != http.MethodPost || len(keys) == 0 || r.URL.Path == bulkPath || !mayChange {
			next.ServeHTTP(w, r)
			return
		}
		refuse := func(status int, code state.Code, detail string) {
			problem := newProblem(status, code, detail)
			problem.Field = "Idempotency-Key"
			writeProblem(w, problem)
		}
		if len(keys) > 1 || !goodKey(keys[0]) {
			refuse(http.StatusBadRequest, state.CodeInvalid, "is one of 1 to 128 letters, digits and signs of ASCII")
			return
		}
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); err != nil && !tooLarge {
			writeProblem(w, newProblem(http.StatusBadRequest, state.CodeInvalid, "the body broke off"))
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body)) // one that is too large is told so behind
		mine := &replay{key: replayKey{actorKeyOf(by), keys[0]}, request: fingerprint(r, body)}
		switch before := p.begin(mine); {
		case before == nil:
			defer p.drop(mine) // unless it is finished
			k := &keeper{ResponseWriter: w, status: http.StatusOK}
			next.ServeHTTP(k, r)
			p.finish(mine, k)
		case before.request != mine.request:
			refuse(http.StatusUnprocessableEntity, state.CodeInvalid, "was given with another request before; take a new one for each")
		case !before.done:
			w.Header().Set("Retry-After", "1")
			refuse(http.StatusConflict, state.CodeConflict, "is of a request that is still under way")
		default:
			maps.Copy(w.Header(), before.header)
			w.Header().Set("Idempotency-Replayed", "true")
			w.WriteHeader(before.status)
			_, _ = w.Write(before.body) // a peer that has gone needs no answer
		}
	})
}

// actorKeyOf tells actors apart; nobody sees another's answers.
func actorKeyOf(a state.Actor) string { return string(a.Kind) + ":" + a.ID + ":" + a.Name }

func goodKey(s string) bool {
	if s == "" || len(s) > maxKey {
		return false
	}
	for _, c := range []byte(s) {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

func fingerprint(r *http.Request, body []byte) (sum [sha256.Size]byte) {
	h := sha256.New()
	_, _ = io.WriteString(h, r.Method+" "+r.URL.RequestURI()+"\n"+r.Header.Get("Content-Type")+"\n")
	_, _ = h.Write(body) // a hash takes everything
	h.Sum(sum[:0])
	return sum
}

// begin enters a request; it returns the one before of the same key, if there is one.
func (p *replays) begin(mine *replay) *replay {
	p.mu.Lock()
	defer p.mu.Unlock()
	mine.at = p.now()
	for e := p.order.Front(); e != nil; e = p.order.Front() {
		if mine.at.Sub(e.Value.(*replay).at) < replayLife {
			break
		}
		p.remove(e)
	}
	if e := p.by[mine.key]; e != nil {
		before := *e.Value.(*replay)
		return &before
	}
	p.by[mine.key] = p.order.PushBack(mine)
	p.weigh(mine.key.actor, replayCost)
	return nil
}

// weigh notes what more an actor's answers take. Where all take too much, who has most loses its oldest:
// nobody has others' keys forgotten.
func (p *replays) weigh(actor string, bytes int) {
	p.bytes += bytes
	if p.each[actor] += bytes; p.each[actor] == 0 {
		delete(p.each, actor)
	}
	for p.bytes > maxKept {
		most := actor
		for a, n := range p.each {
			if n > p.each[most] {
				most = a
			}
		}
		e := p.order.Front()
		for e.Value.(*replay).key.actor != most {
			e = e.Next()
		}
		p.remove(e)
	}
}

func (p *replays) remove(e *list.Element) {
	r := e.Value.(*replay)
	p.order.Remove(e)
	delete(p.by, r.key)
	p.weigh(r.key.actor, -len(r.body)-replayCost)
}

// finish keeps an answer. Only what was done is kept: who was refused may try again.
func (p *replays) finish(mine *replay, k *keeper) {
	if k.status >= 300 || k.tooLong {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.by[mine.key]; e == nil || e.Value.(*replay) != mine {
		return
	}
	mine.done, mine.status, mine.header, mine.body = true, k.status, http.Header{"Content-Type": k.Header()["Content-Type"]}, k.body.Bytes()
	p.weigh(mine.key.actor, len(mine.body))
}

// drop lets go of a request that came to nothing.
func (p *replays) drop(mine *replay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.by[mine.key]; e != nil && e.Value.(*replay) == mine && !mine.done {
		p.remove(e)
	}
}

// keeper keeps a copy of an answer.
type keeper struct {
	http.ResponseWriter
	status  int
	body    bytes.Buffer
	tooLong bool
}

// WriteHeader keeps the status.
func (k *keeper) WriteHeader(status int) {
	k.status = status
	k.ResponseWriter.WriteHeader(status)
}

// Write keeps the bytes.
func (k *keeper) Write(b []byte) (int, error) {
	if k.body.Len()+len(b) > maxKept/2 {
		k.tooLong = true
		k.body = bytes.Buffer{}
	}
	if !k.tooLong {
		k.body.Write(b)
	}
	return k.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (k *keeper) Unwrap() http.ResponseWriter { return k.ResponseWriter }
