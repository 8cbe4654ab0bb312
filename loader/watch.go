package loader

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// reconcileEvery is how often Watch looks by itself: netlink events can be lost.
	reconcileEvery = 5 * time.Second
	// reconcileGap lets a burst of events, as when containers start, cost one look.
	reconcileGap = 50 * time.Millisecond
	// A refused attachment loads a program, and may disturb the driver: it is tried ever less often.
	retryFirst, retryMax = 5 * time.Second, 5 * time.Minute
)

// retry is when to try again to attach an interface.
type retry struct {
	ifindex int
	after   time.Duration
	at      time.Time
	said    string
}

// Watch keeps attached what is wanted: an interface that comes back under its name is attached
// again, one that is renamed keeps its shield. It acts on netlink's events and looks every five
// seconds by itself. It returns nil when the context ends, and an error only if it can't start.
func (s *Set) Watch(ctx context.Context) error {
	events, stop, err := subscribe()
	if err != nil {
		return fmt.Errorf("watch interfaces: %w", err)
	}
	defer stop()
	tick := time.NewTicker(reconcileEvery)
	defer tick.Stop()
	s.lookAfter(ctx, events, tick.C)
	return nil
}

// lookAfter looks at the interfaces at each event and tick, until the context ends.
func (s *Set) lookAfter(ctx context.Context, events <-chan struct{}, tick <-chan time.Time) {
	for {
		s.reconcile(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconcileGap):
		}
		select {
		case <-ctx.Done():
			return
		case <-tick:
		case <-events:
		}
	}
}

// subscribe returns a channel that has a value when interfaces have changed since it was last read.
// What changed is not said: who reads it looks for himself, so that a lost event loses nothing.
func subscribe() (<-chan struct{}, func(), error) {
	socket, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
	if err != nil {
		return nil, nil, err
	}
	events := make(chan struct{}, 1)
	closing, closed := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(closed)
		for {
			_, _, err := socket.Receive()
			if err != nil && !errors.Is(err, unix.ENOBUFS) { // that one means that events were lost: an event
				select {
				case <-closing:
					return
				case <-time.After(reconcileEvery):
				}
			}
			select {
			case events <- struct{}{}:
			default:
			}
		}
	}()
	stop := func() {
		close(closing)
		socket.Close()
		<-closed
	}
	return events, stop, nil
}

// reconcile attaches what is wanted and not attached.
func (s *Set) reconcile(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.maps == nil {
		return // closed
	}
	if s.litter {
		s.tidy()
	}
	live, table, err := s.settle()
	if err != nil {
		s.log.Error("look after interfaces", "error", err)
		return
	}
	want := make(map[string]Mode)
	for name, mode := range s.wanted {
		want[name] = mode
	}
	for _, e := range table.entry {
		if e.Ifindex != 0 {
			name := slotName(e)
			want[name] = ModeAuto
			if mode, ok := s.modes[name]; ok {
				want[name] = mode
			}
		}
	}
	for name, mode := range want {
		if live[name] == nil {
			s.tryAttach(name, mode, now)
		}
	}
}

func (s *Set) tryAttach(name string, mode Mode, now time.Time) {
	dev, err := deviceByName(name)
	if err != nil {
		s.why[name] = ErrNoInterface.Error()
		if !errors.Is(err, ErrNoInterface) {
			s.why[name] = err.Error()
		}
		delete(s.retries, name)
		return
	}
	last := s.retries[name]
	if last.ifindex == dev.index && now.Before(last.at) {
		return
	}
	err = s.attach(name, mode)
	if err == nil {
		said := s.log.With("interface", name)
		if why := s.why[name]; why != "" {
			said = said.With("not_native", why)
		}
		said.Info("an interface is here; it is shielded")
		return
	}
	s.why[name] = err.Error()
	next := retry{ifindex: dev.index, after: retryFirst, said: err.Error()}
	if last.ifindex == dev.index {
		next.after = min(2*last.after, retryMax)
	}
	var theirs *ForeignError
	if errors.As(err, &theirs) {
		next.after = 0 // that costs nothing but a question
	}
	next.at = now.Add(next.after + rand.N(next.after/8+1))
	s.retries[name] = next
	if last.said != next.said {
		s.log.Error("an interface is here, but can't be shielded", "interface", name, "error", err)
	}
}
