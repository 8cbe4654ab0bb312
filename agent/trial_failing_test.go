package agent

import (
	"errors"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// A trial that could not be taken back, and whose change was then made for good, as its problem advises:
// nobody waits for it any more.
func TestTrialFailedThenKept(t *testing.T) {
	clock := &movableClock{}
	e := onFake(t, newFakeKernel(), clock)
	root := state.Operator("root")
	bans := []state.BanItem{{Prefix: "192.0.2.1"}}
	tried, err := e.Ban(root, state.BanRequest{Bans: bans, Confirm: second})
	if err != nil || tried.Trial == nil {
		t.Fatalf("%+v, %v", tried, err)
	}
	clock.advance(2 * time.Second)
	e.trialFailed(tried.Trial.ID, errors.New("the disk is full"))
	if wait := e.endOverdue(); wait <= 0 || wait > lastRetry {
		t.Errorf("it is tried again in %s", wait)
	}
	if r, err := e.Ban(root, state.BanRequest{Bans: bans}); err != nil || r.Done != 1 || e.state.OnTrial() {
		t.Fatalf("%+v, %v, %+v", r, err, e.Trials())
	}
	clock.advance(lastRetry)
	if wait := e.endOverdue(); wait != time.Hour {
		t.Errorf("one looks again in %s though nothing is on trial", wait)
	}
}
