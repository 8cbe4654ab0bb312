package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/levee-xdp/levee/agent/state"
)

// wasCutShort is why an import is taken back of which nobody knows any more what it failed at.
const wasCutShort = "it was cut short"

// undoing is the taking back of an import that was to be done whole or not at all.
type undoing struct {
	*engine
	why      string
	counts   map[state.Origin]undoneCount
	problems []string // of parts that can't be taken back
}

// undoneCount is how many claims of an origin were taken back, and of how many what it had said before is
// in force again.
type undoneCount struct {
	Origin  state.Origin `json:"origin"`
	Removed int          `json:"removed"`
	Changed int          `json:"changed"`
}

func (e *engine) undoing(why string) *undoing {
	return &undoing{engine: e, why: why, counts: map[state.Origin]undoneCount{}}
}

// took tells of a part that was taken back.
func (u *undoing) took(d state.Dropped) {
	if d.Damaged != nil {
		problem := fmt.Sprintf("an import that was to be done whole or not at all is in force in part, and can't be taken back: %s; look at them with levee bans list, and take back with levee unban what is not to stay", d.Damaged)
		u.problems = append(u.problems, problem)
	}
	for i := range d.Decisions {
		o := &d.Decisions[i]
		n := u.counts[o.Origin]
		if n.Origin = o.Origin; o.Op == string(state.StatusRemoved) {
			n.Removed++
		} else {
			n.Changed++
		}
		u.counts[o.Origin] = n
	}
	u.tellTakenBack(d.Decisions)
}

// over records what was taken back, if anything was, and with an error, why that is not all; and what can't
// be taken back.
func (u *undoing) over(err error) {
	for _, problem := range u.problems {
		u.log.Error("a part of an import can't be taken back", "problem", problem)
		u.mu.Lock()
		u.lasting = append(u.lasting, problem)
		u.mu.Unlock()
		u.audit.Write(&state.AuditEvent{Action: "take-back", By: state.Operator("levee"), Target: "bulk", Failed: true, Code: state.CodeStorage, Reason: problem})
	}
	if len(u.counts) == 0 {
		return
	}
	counts := slices.SortedFunc(maps.Values(u.counts), func(a, b undoneCount) int { return cmp.Compare(a.Origin, b.Origin) })
	a := &state.AuditEvent{Action: "take-back", By: state.Operator("levee"), Target: "bulk", Value: counts}
	fail(a, err)
	reason := "the import was to be done whole or not at all, and " + u.why
	if err != nil {
		reason += "; not all of it could be taken back: " + a.Reason
	}
	a.Reason = reason
	u.audit.Write(a)
	u.log.Warn("an import was to be done whole or not at all; what was done of it was taken back", "why", u.why, "claims", counts)
}

// takeAllBack takes back what was done of a whole, from its end on.
func (b *bulk) takeAllBack(cause error) error {
	a := b.answer
	a.Nothing, a.Added, a.Changed, a.Unchanged = true, 0, 0, 0
	why := fmt.Sprintf("%d of its lines were refused", a.Refused)
	if cause != nil {
		why = "it failed: " + cause.Error()
	}
	if err := b.dropWhole(why); err != nil {
		failed := *state.AsError(err, state.CodeStorage)
		failed.Detail = fmt.Sprintf("not all could be done, and taking back what was did not work, either: %s; it is in force until that works, which is tried again every minute", failed.Detail)
		b.wakeTrials()
		return &failed
	}
	return cause
}

// dropWhole takes back what there is of a whole.
func (e *engine) dropWhole(why string) error {
	u := e.undoing(why)
	for left := true; left; {
		err := e.reconciler.Change(func() error {
			dropped, any, err := e.state.DropWhole()
			left = any
			e.reconciler.Apply(dropped.Prefixes) // it only takes away, or puts what was there
			u.took(dropped)
			return err
		})
		if err != nil {
			u.over(err)
			return err
		}
	}
	u.over(nil)
	return nil
}

// wholeProblem says that an import that was to be done whole or not at all is in force in part.
func (e *engine) wholeProblem() string {
	left := e.state.Left()
	if left == nil {
		return ""
	}
	return "an import that was to be done whole or not at all was not, and what was done of it could not all be taken back, so it is in force: " + left.Error() + "; that is tried again every minute, and before the next import of this kind"
}
