package httpguard

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Daemon has the kernel ban prefixes. A client.Client is one.
type Daemon interface {
	Ban(ctx context.Context, r state.BanRequest) (state.BanResponse, error)
}

// Escalation is who has the kernel drop an offender's packets, and as whom the Guard speaks to it.
type Escalation struct {
	Daemon Daemon       // nil: nobody; offenders are refused here alone
	Origin state.Origin // as which the Guard bans: api if empty; tell several servers apart by api:NAME
	// AtProxy says that the daemon shields the trusted proxies, so that the packets of clients
	// behind them do come from the clients there.
	AtProxy bool
	Queue   int           // how many bans may wait for the daemon: 1024 if 0
	Timeout time.Duration // of a call: 5s if 0
}

func (e *Escalation) complete() error {
	if e.Queue == 0 {
		e.Queue = 1024
	}
	if e.Timeout == 0 {
		e.Timeout = 5 * time.Second
	}
	if e.Origin == "" {
		e.Origin = state.OriginAPI
	}
	if e.Queue < 0 || e.Timeout < 0 {
		return errors.New("its queue or its timeout is less than 0")
	}
	_, err := state.ParseOrigin(string(e.Origin))
	return err
}

const (
	batch     = 256 // bans that are asked for in one call
	giveUp    = time.Minute
	firstWait = 100 * time.Millisecond
	maxWait   = 5 * time.Second
	lastCall  = 2 * time.Second // at Close
)

// escalator asks the daemon for bans, off the way of requests.
type escalator struct {
	config  *Config
	note    func(Event)
	queue   chan wanted
	waiting atomic.Int64
	mu      sync.RWMutex // held for writing while it closes
	closed  bool
	stop    context.CancelFunc
	done    chan struct{}
}

// wanted is a ban that waits.
type wanted struct {
	Event
	at time.Time
}

func newEscalator(c *Config, note func(Event)) *escalator {
	ctx, cancel := context.WithCancel(context.Background())
	e := &escalator{config: c, note: note, queue: make(chan wanted, c.Escalation.Queue), stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		e.run(ctx)
	}()
	return e
}

// close hands over what waits, and ends.
func (e *escalator) close() {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.stop()
	<-e.done
}

// push has a ban asked for soon, unless too many wait.
func (e *escalator) push(ev Event) {
	e.mu.RLock()
	defer e.mu.RUnlock()
	if !e.closed {
		e.waiting.Add(1)
		select {
		case e.queue <- wanted{ev, e.config.now()}:
			return
		default:
			e.waiting.Add(-1)
		}
	}
	ev.Kind = Overflowed
	e.note(ev)
}

func (e *escalator) run(ctx context.Context) {
	var left []wanted
	for ctx.Err() == nil {
		select {
		case w := <-e.queue:
			left = e.deliver(ctx, e.gather(w))
		case <-ctx.Done():
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastCall)
	defer cancel()
	if len(left) > 0 {
		_ = e.once(last, left, true) // it is counted
	}
	for len(e.queue) > 0 {
		_ = e.once(last, e.gather(<-e.queue), true)
	}
}

// gather takes what waits beside one, up to a batch.
func (e *escalator) gather(w wanted) []wanted {
	list := []wanted{w}
	for len(list) < batch {
		select {
		case w := <-e.queue:
			list = append(list, w)
		default:
			return list
		}
	}
	return list
}

// deliver asks until the daemon answers, for a minute at most. It returns what is still to be asked
// for when the context ends.
func (e *escalator) deliver(ctx context.Context, list []wanted) (left []wanted) {
	start, wait, away := time.Now(), firstWait, false
	for {
		late := time.Since(start) > giveUp
		err := e.once(ctx, list, late)
		switch {
		case err == nil && away:
			e.config.Log.Info("the daemon takes bans again", "after", time.Since(start).Round(time.Second))
			return nil
		case err == nil, late:
			return nil
		case ctx.Err() != nil:
			return list
		case !away:
			e.config.Log.Warn("the daemon takes no bans; offenders are refused here meanwhile", "error", err)
			away = true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return list
		}
		wait = min(2*wait, maxWait)
	}
}

// once asks the daemon one time. What it was asked for in vain for the last time is given up.
func (e *escalator) once(ctx context.Context, list []wanted, last bool) error {
	ctx, cancel := context.WithTimeout(ctx, e.config.Escalation.Timeout)
	defer cancel()
	r := state.BanRequest{Bans: make([]state.BanItem, len(list))}
	for i, w := range list {
		left := max(time.Second, w.For-e.config.now().Sub(w.at))
		r.Bans[i] = state.BanItem{
			Prefix: network(w.Client.Addr).String(), Origin: e.config.Escalation.Origin, Monitor: e.config.Monitor,
			Reason: fmt.Sprintf("httpguard: %s; offence %d", w.Reason, w.Times),
			For:    state.Duration(left.Round(time.Second)).String(),
		}
		// The daemon then sees to it that what it bans is what packets come from. Where it shields the
		// proxies, it is they who see that.
		if w.Client.Peer.IsValid() && !w.Client.Proxied {
			r.Bans[i].Via = w.Client.Peer.String()
		}
	}
	answer, err := e.config.Escalation.Daemon.Ban(ctx, r)
	if err == nil && len(answer.Bans) != len(list) {
		err = fmt.Errorf("the daemon answered for %d of %d bans", len(answer.Bans), len(list))
	}
	if err != nil && !last {
		return err
	}
	e.waiting.Add(-int64(len(list)))
	for i, w := range list {
		ev := w.Event
		switch {
		case err != nil:
			ev.Kind = GivenUp
		case answer.Bans[i].Status == state.StatusRefused:
			ev.Kind = Refused
			if answer.Bans[i].Error != nil {
				ev.Reason = answer.Bans[i].Error.Error()
			}
		default:
			ev.Kind, ev.Took = Banned, e.config.now().Sub(w.at)
		}
		e.note(ev)
	}
	return err
}
