package api

import (
	"context"
	"net/http"
	"sync"
	"time"
)

// How many bodies are taken at once. A body costs several times its size while it is read, so it is
// their number that bounds memory; who finds no place waits for a moment.
const (
	smallBody   = 64 << 10
	smallPlaces = 128
	largePlaces = 4
	largeEach   = 2 // of one actor
	placeWait   = 5 * time.Second
)

// bodies hands out the places.
type bodies struct {
	small, large chan struct{}

	mu   sync.Mutex
	each map[string]chan struct{} // by actor, of those that have or wait for a large place
	uses map[string]int
}

func newBodies() *bodies {
	return &bodies{small: make(chan struct{}, smallPlaces), large: make(chan struct{}, largePlaces),
		each: map[string]chan struct{}{}, uses: map[string]int{}}
}

// take waits for a place for a request's body; it returns how to give the place back, or false.
func (b *bodies) take(r *http.Request, actor string) (free func(), ok bool) {
	if r.ContentLength == 0 {
		return func() {}, true
	}
	ctx, cancel := context.WithTimeout(r.Context(), placeWait)
	defer cancel()
	if r.ContentLength > 0 && r.ContentLength <= smallBody {
		return b.enter(ctx, b.small)
	}
	mine, done := b.mine(actor)
	leave, ok := b.enter(ctx, mine)
	if !ok {
		done()
		return nil, false
	}
	large, ok := b.enter(ctx, b.large)
	if !ok {
		leave()
		done()
		return nil, false
	}
	return func() { large(); leave(); done() }, true
}

func (b *bodies) enter(ctx context.Context, places chan struct{}) (func(), bool) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, true
	case <-ctx.Done():
		return nil, false
	}
}

// mine returns an actor's own places.
func (b *bodies) mine(actor string) (places chan struct{}, done func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	places = b.each[actor]
	if places == nil {
		places = make(chan struct{}, largeEach)
		b.each[actor] = places
	}
	b.uses[actor]++
	return places, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.uses[actor]--; b.uses[actor] == 0 {
			delete(b.uses, actor)
			delete(b.each, actor)
		}
	}
}
