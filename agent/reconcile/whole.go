package reconcile

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/maps"
)

// Sync makes all of the kernel equal to all of the state at once. Changes wait for it.
func (r *Reconciler) Sync() (state.Reconciled, error) { return r.sync(r.Bans.Sync) }

// Fill is the first Sync after a start, before anything else was written. What it writes is no drift:
// nothing kept it in the kernel until now.
func (r *Reconciler) Fill() (state.Reconciled, error) {
	done, err := r.sync(r.Bans.Fill)
	agreed := done
	agreed.Drift = 0
	r.last.Store(&agreed)
	return done, err
}

func (r *Reconciler) sync(bans func(iter.Seq[maps.Ban]) (maps.Changes, error)) (state.Reconciled, error) {
	start := time.Now()
	drift, errSettings := r.syncSettings()
	changes, errBans := r.syncBans(bans)
	return r.done(start, drift+changes.Drift(), errors.Join(errSettings, wrap("bans", errBans)))
}

// done notes what a comparison of the whole found.
func (r *Reconciler) done(start time.Time, drift int, err error) (state.Reconciled, error) {
	done := state.Reconciled{Time: r.Clock.Now().UTC(), Took: state.Duration(time.Since(start)), Drift: drift}
	if err != nil {
		done.Error = err.Error()
	}
	r.last.Store(&done)
	return done, err
}

func (r *Reconciler) syncBans(sync func(iter.Seq[maps.Ban]) (maps.Changes, error)) (maps.Changes, error) {
	r.sweep()
	defer r.bans.still()()
	changes, err := sync(func(yield func(maps.Ban) bool) {
		for b := range r.State.Bans() {
			if !yield(kernelBan(b)) {
				return
			}
		}
	})
	if changes.Late > 0 {
		r.Log.Warn("bans found room only when the ones before had gone, and their addresses may have passed for a moment: "+
			"raise tables.ipv4_bans or tables.ipv6_bans", "bans", changes.Late)
	}
	return changes, err
}

// syncSettings compares what is no ban, and puts right what differs.
func (r *Reconciler) syncSettings() (drift int, err error) {
	defer r.settings.still()()
	r.State.SweepAllows()
	limits, errLimits := r.syncLimits()
	allows, errAllows := r.syncAllows()
	var switches maps.Changes
	var errSwitches error
	if r.switches != nil {
		switches, errSwitches = r.Control.Sync(*r.switches)
	}
	return limits.Drift() + allows.Drift() + switches.Drift(),
		errors.Join(wrap("limits", errLimits), wrap("allows", errAllows), wrap("switches", errSwitches))
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Whole is the comparison of the whole. A million bans are compared in small steps, so that a change
// waits for one of them at most. What somebody else has changed is put right in small steps, too; only if
// the tables are damaged beyond what they ban, all of them are put right at once.
func (r *Reconciler) Whole(ctx context.Context) {
	if r.State.Tick() {
		r.Log.Info("bans from before the last boot follow the wall clock")
		if _, err := r.Sync(); err != nil {
			r.Log.Error("write the tables", "error", err)
		}
		return
	}
	start := time.Now()
	drift, errSettings := r.syncSettings()
	var errBans error
	if !r.agree(ctx) && ctx.Err() == nil {
		r.sweep()
		drift += r.mend(ctx)
		if !r.agree(ctx) && ctx.Err() == nil {
			var changes maps.Changes
			changes, errBans = r.syncBans(r.Bans.Sync)
			drift += changes.Drift()
		}
	}
	if ctx.Err() != nil {
		return
	}
	done, err := r.done(start, drift, errors.Join(errSettings, wrap("bans", errBans)))
	switch {
	case err != nil:
		r.Log.Error("compare state and kernel", "error", err)
	case done.Drift > 0:
		r.Log.Warn("the kernel's tables differed from the state and were put right: something else writes them", "entries", done.Drift)
	}
}

// agree tells whether the kernel bans what the state says, asking both ways round.
func (r *Reconciler) agree(ctx context.Context) bool {
	steps := steps{r: r, ctx: ctx}
	var bans []state.Ban
	var kernel []maps.Ban
	for place := uint32(1); place != 0; {
		next := uint32(0)
		if steps.differ(func() bool {
			bans, next = r.State.BansFrom(place, bans[:0])
			kernel = kernel[:0]
			for _, b := range bans {
				kernel = append(kernel, kernelBan(b))
			}
			return r.Bans.Lacks(kernel) > 0
		}) {
			return false
		}
		place = next
	}
	wanted := func(p netip.Prefix) (maps.Ban, bool) {
		b, ok := r.State.Effective(p)
		return kernelBan(b), ok
	}
	for at := 0; at >= 0; {
		next := 0
		if steps.differ(func() bool {
			after, n := r.Bans.Compare(at, wanted)
			next = after
			return n > 0
		}) {
			return false
		}
		at = next
	}
	return !steps.differ(func() bool {
		want4, want6 := r.State.Prefixes()
		have4, have6 := r.Bans.Len()
		return want4 != have4 || want6 != have6
	})
}

// steps is a comparison in small steps.
type steps struct {
	r      *Reconciler
	ctx    context.Context // it lives as long as one call
	worked time.Duration   // since the last rest
}

// differ takes a step, and looks again without any change on its way if that found something. Between
// steps it rests, so that all of them together take a small part of a CPU. If the context has ended
// there is no more to do.
func (s *steps) differ(step func() bool) bool {
	const (
		most = time.Millisecond / 2 // of work at a stretch
		less = 8                    // times as long it rests
	)
	start := time.Now()
	found := step()
	if found {
		free := s.r.bans.still()
		found = step()
		free()
	}
	if s.worked += time.Since(start); s.worked > most && !found {
		if sleep(s.ctx, less*s.worked) != nil {
			return true
		}
		s.worked = 0
	}
	return found
}

// sweepPart is how many claims that have ended are swept at once.
const sweepPart = 2000

// sweepSome forgets claims that have ended, and returns when the next one ends.
func (r *Reconciler) sweepSome() (ended []state.Expired, next uint64) {
	ended, next = r.State.Sweep(sweepPart)
	prefixes := make([]netip.Prefix, len(ended))
	for i, e := range ended {
		prefixes[i] = e.Prefix
	}
	r.apply(prefixes) // it only takes away, or puts what was there
	return ended, next
}

// sweep forgets what has ended, and returns when the next claim ends. Changes may come in between.
func (r *Reconciler) sweep() (next uint64) {
	for {
		r.bans.flight.RLock()
		r.bans.mu.Lock()
		ended, next := r.sweepSome()
		r.bans.mu.Unlock()
		r.bans.flight.RUnlock()
		r.Expired(ended)
		if len(ended) < sweepPart {
			return next
		}
	}
}

// sweepAllows forgets allow entries that have ended, and returns when the next one ends. The kernel
// has ended them on time; one that is still there hides a wider one.
func (r *Reconciler) sweepAllows() (next uint64) {
	r.settings.flight.RLock()
	defer r.settings.flight.RUnlock()
	r.settings.mu.Lock()
	defer r.settings.mu.Unlock()
	ended, next := r.State.SweepAllows()
	if !ended {
		return next
	}
	if _, err := r.syncAllows(); err != nil {
		r.Log.Error("write the allow list", "error", err)
	}
	return next
}

// Run sweeps claims that have ended, and compares all in its interval, until the context ends.
func (r *Reconciler) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.sweeping(ctx) })
	group.Go(func() error { return r.comparing(ctx) })
	return group.Wait()
}

func (r *Reconciler) comparing(ctx context.Context) error {
	ticker := time.NewTicker(r.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			r.Whole(ctx)
		}
	}
}

func (r *Reconciler) sweeping(ctx context.Context) error {
	// Claims that end close to each other are swept together; the kernel has ended them on time.
	const together = 50 * time.Millisecond
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		case <-timer.C:
		}
		next := min(r.sweep(), r.sweepAllows())
		wait := r.Interval
		if now := r.Clock.Monotonic(); next != state.Forever {
			wait = min(wait, time.Duration(max(int64(next)-int64(now), 0))+together)
		}
		timer.Reset(wait)
		if sleep(ctx, together) != nil {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
