package api

import (
	"context"
	"sync"
	"time"
)

// placeWait is how long a request waits for a place before it is told to come again.
const placeWait = 5 * time.Second

// places bounds how many requests of a kind are under way: in all, and of one actor. What actors have
// beyond a place each is less than half of all, too, so that a few can't take all of them.
type places struct {
	wait time.Duration
	all  chan struct{}
	each int           // of one actor; 0: no bound
	more chan struct{} // those beyond an actor's first

	mu sync.Mutex
	by map[string]*own // of those that have a place, or wait for one
}

// own is the places of one actor.
type own struct {
	taken, first chan struct{}
	uses         int
}

func newPlaces(all, each int) *places {
	return &places{wait: placeWait, all: make(chan struct{}, all), each: each, more: make(chan struct{}, max(0, all/2-1)), by: map[string]*own{}}
}

// take waits for a place; it returns how to give the place back, or false. Nil has places for everybody.
func (p *places) take(ctx context.Context, actor string) (free func(), ok bool) {
	if p == nil {
		return func() {}, true
	}
	ctx, cancel := context.WithTimeout(ctx, p.wait)
	defer cancel()
	leave := func() {}
	if p.each > 0 {
		o := p.enter(actor)
		leave = func() { p.leave(actor, o) }
		select {
		case o.taken <- struct{}{}:
		case <-ctx.Done():
			leave()
			return nil, false
		}
		leave = func() { <-o.taken; p.leave(actor, o) }
		share, ok := p.share(ctx, o)
		if !ok {
			leave()
			return nil, false
		}
		leave = func() { <-share; <-o.taken; p.leave(actor, o) }
	}
	select {
	case p.all <- struct{}{}:
		return func() { <-p.all; leave() }, true
	case <-ctx.Done():
		leave()
		return nil, false
	}
}

// share waits until the place is an actor's first, or one of those that there are beyond; it returns which.
func (p *places) share(ctx context.Context, o *own) (chan struct{}, bool) {
	select {
	case o.first <- struct{}{}:
		return o.first, true
	default:
	}
	select {
	case o.first <- struct{}{}:
		return o.first, true
	case p.more <- struct{}{}:
		return p.more, true
	case <-ctx.Done():
		return nil, false
	}
}

func (p *places) enter(actor string) *own {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.by[actor]
	if o == nil {
		o = &own{taken: make(chan struct{}, p.each), first: make(chan struct{}, 1)}
		p.by[actor] = o
	}
	o.uses++
	return o
}

func (p *places) leave(actor string, o *own) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o.uses--; o.uses == 0 {
		delete(p.by, actor)
	}
}
