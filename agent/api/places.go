package api

import (
	"context"
	"sync"
	"time"
)

// placeWait is how long a request waits for a place before it is told to come again.
const placeWait = 5 * time.Second

// places bounds how many requests of a kind are under way: in all, and of one actor, so that nobody
// takes all of them.
type places struct {
	wait time.Duration
	all  chan struct{}
	each int // 0: no bound

	mu sync.Mutex
	by map[string]*own // of those that have a place, or wait for one
}

// own is the places of one actor.
type own struct {
	taken chan struct{}
	uses  int
}

func newPlaces(all, each int) *places {
	return &places{wait: placeWait, all: make(chan struct{}, all), each: each, by: map[string]*own{}}
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
	}
	select {
	case p.all <- struct{}{}:
		return func() { <-p.all; leave() }, true
	case <-ctx.Done():
		leave()
		return nil, false
	}
}

func (p *places) enter(actor string) *own {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.by[actor]
	if o == nil {
		o = &own{taken: make(chan struct{}, p.each)}
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
