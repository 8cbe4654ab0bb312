package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/levee-xdp/levee/agent/state"
)

// Health says whether all is well, and what to do if not.
func (e *engine) Health() state.Health {
	e.mu.Lock()
	problems := slices.Clone(e.lasting)
	e.mu.Unlock()
	if f := e.state.Failure(); f != nil {
		problems = append(problems, "the last change could not be written: "+f.Error())
	}
	if err := e.audit.Failing(); err != nil {
		problems = append(problems, "the audit log can't be written, records are lost: "+err.Error())
	}
	switch last := e.reconciler.Last(); {
	case last.Error != "":
		problems = append(problems, "state and kernel could not be made equal: "+last.Error)
	case last.Drift > 0:
		problems = append(problems, fmt.Sprintf("%d entries of the kernel's tables differed from the state and were put right: something else writes them", last.Drift))
	}
	for _, l := range e.listeners {
		if p := l.Problem(); p != "" {
			problems = append(problems, p)
		}
	}
	if p := e.wholeProblem(); p != "" {
		problems = append(problems, p)
	}
	problems = append(problems, e.trialProblems()...)
	if p := e.finder.Problem(); p != "" {
		problems = append(problems, "protected addresses could not all be found, those known before stay protected: "+p)
	}
	interfaces, err := e.Interfaces()
	if err != nil {
		problems = append(problems, err.Error())
	}
	for _, i := range interfaces {
		if i.Wanted != "" && !i.Attached {
			problems = append(problems, i.Name+" is not shielded: "+i.Why)
		}
	}
	h := state.Health{State: "ok", Problems: problems}
	switch {
	case !e.ready.Load():
		h.State = "starting"
	case len(problems) > 0:
		h.State = "degraded"
	}
	return h
}

// watchdog tells systemd that the daemon lives, if systemd wants to know: that it comes by the locks of
// all that it does, and answers. Where that hangs nothing is told, and systemd starts another.
func (e *engine) watchdog(ctx context.Context) error {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		<-ctx.Done()
		return nil // what systemd did not say well is not asked for
	}
	ticker := time.NewTicker(interval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			e.Health()
			notify(daemon.SdNotifyWatchdog)
		}
	}
}
