package agent

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
)

// rescue keeps what the kernel holds where the state has lost it.
func (e *engine) rescue(lost *state.Lost) error {
	var problem, reason string
	switch doubt := e.state.Doubt(); {
	case lost != nil:
		reason = "the state was lost"
		problem = fmt.Sprintf("the state was damaged at start (%v); the file was set aside as %s", lost.Err, lost.Aside)
	case doubt != nil:
		reason = "the state was damaged"
		problem = fmt.Sprintf("the state was damaged at start: %v", doubt)
	case e.state.Fresh():
		reason = "there was no state"
	default:
		return nil
	}
	kept, err := e.keep(reason)
	if err != nil {
		return fmt.Errorf("keep what the kernel holds: %w", err)
	}
	if e.state.Fresh() {
		if err := e.state.Filled(); err != nil {
			return err
		}
	}
	if problem == "" && kept == 0 {
		return nil // just new
	}
	if problem == "" {
		problem = "there was no state, though the kernel holds bans; was the state's path changed?"
	}
	problem += fmt.Sprintf("; %d bans that the kernel held were kept, their origin is %s now", kept, state.OriginKernel)
	e.log.Error("the state was lost in part or whole", "problem", problem)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lasting = append(e.lasting, problem)
	return nil
}

// keep makes claims of bans that stand in the kernel and not in the state, so that a state which
// was lost does not open the gates; also of those of a set that is about to be replaced.
func (e *engine) keep(reason string) (int, error) {
	const part = 10_000
	var proposals []state.Proposal
	kept := 0
	flush := func() error {
		outcomes, err := e.state.Propose(proposals)
		for i := range outcomes {
			if outcomes[i].Error == nil {
				kept++
			}
		}
		proposals = proposals[:0]
		return err
	}
	now := e.clock.Monotonic()
	replaced, err := e.shield.Replaced()
	if err != nil {
		return 0, fmt.Errorf("read the set that is replaced: %w", err)
	}
	for b := range both(e.tables.Bans.All(), slices.Values(replaced)) {
		if _, known := e.state.Effective(b.Prefix); known || b.Expires <= now {
			continue
		}
		p := state.Proposal{Prefix: b.Prefix, Origin: state.OriginKernel, Actor: "levee", Reason: reason, Monitor: b.Monitor, Force: true}
		if b.Expires != bpf.Forever {
			p.For = time.Duration(b.Expires - now)
		}
		if proposals = append(proposals, p); len(proposals) == part {
			if err := flush(); err != nil {
				return kept, err
			}
		}
	}
	return kept, flush()
}

func both[T any](a, b iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		for _, seq := range []iter.Seq[T]{a, b} {
			for v := range seq {
				if !yield(v) {
					return
				}
			}
		}
	}
}
