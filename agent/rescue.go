package agent

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// rescuer is the actor of what was kept.
const rescuer = "levee"

// rescue keeps what the kernel holds where the state has lost it: that the state is empty is then no
// decision. What can't be kept is said. Where the kernel's tables can't be read, either, it returns an
// error, and everything stays as it was.
func (e *engine) rescue(lost *state.Lost, path string, cutShort []netip.Prefix) error {
	r := rescued{engine: e, cutShort: map[netip.Prefix]bool{}}
	var problem string
	switch doubt := e.state.Doubt(); {
	case lost != nil:
		r.reason, r.all = "the state was lost", true
		problem = fmt.Sprintf("the state was damaged at start (%v); the file was set aside as %s", lost.Err, lost.Aside)
	case e.state.Fresh():
		r.reason, r.all = "there was no state", true
		problem = "there was no state, though the kernel holds what was decided; was the state's path changed?"
	case doubt != nil:
		r.reason = "the state was damaged"
		problem = fmt.Sprintf("the state was damaged at start: %v", doubt)
	default:
		return nil
	}
	replaced, err := e.shield.Replaced()
	var schema *loader.SchemaError
	switch {
	case errors.As(err, &schema) && r.all && e.shields():
		return e.giveUp(lost, path, problem, schema)
	case errors.As(err, &schema):
		r.notes = append(r.notes, "what the kernel held could not be compared: "+schema.Error())
	case err != nil:
		return fmt.Errorf("read the set that is replaced: %w", err)
	}
	for _, p := range cutShort {
		r.cutShort[p] = true
	}
	if err := r.keep(&replaced); err != nil {
		return fmt.Errorf("keep what the kernel holds: %w", err)
	}
	if e.state.Fresh() {
		if err := e.state.Filled(); err != nil {
			return err
		}
	}
	if lost == nil && e.state.Doubt() == nil && r.nothing() {
		return nil // just new
	}
	problem += "; " + r.String()
	if r.all {
		problem += "; what to do: put a backup in the place of " + path + " while the daemon is stopped, or look through what was kept and make anew what is missing"
	}
	e.log.Error("the state was lost in part or whole", "problem", problem)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lasting = append(e.lasting, problem)
	return nil
}

// shields tells whether a program is on any interface.
func (e *engine) shields() bool {
	list, err := e.shield.Attachments()
	return err != nil || slices.ContainsFunc(list, func(a loader.Attachment) bool { return a.Mode != loader.ModeNone })
}

// giveUp leaves all as it was: to go on would take what is enforced away, and nobody could tell what that
// was.
func (e *engine) giveUp(lost *state.Lost, path, problem string, schema *loader.SchemaError) error {
	err := fmt.Errorf("%s; and what is enforced stands in tables that this version can't read (%w), so to go on would end all of it. "+
		"Nothing was changed: the shield stands as it was, with the program that was there. "+
		"Start the version of Levee that made these tables: it keeps what is in force, and then this one can take over. "+
		"Or put a backup in the place of %s. To give up what is in force, run: levee detach --all", problem, schema, path)
	if lost == nil {
		return err
	}
	closed := e.state.Close()
	e.state = nil
	if closed == nil {
		closed = lost.PutBack(path)
	}
	return errors.Join(err, closed)
}

// rescued is what could be kept of a state that was lost.
type rescued struct {
	*engine
	reason string
	all    bool // nothing but the kernel knows anything

	cutShort map[netip.Prefix]bool // of an import that was taken back just now

	bans, allows int
	limits       []string // by name
	interfaces   []string
	notes        []string // what could not be kept
}

func (r *rescued) nothing() bool {
	return r.bans+r.allows+len(r.limits)+len(r.interfaces)+len(r.notes) == 0
}

// String says what was kept and what was not.
func (r *rescued) String() string {
	b := &strings.Builder{}
	fmt.Fprintf(b, "%d bans that the kernel held were kept, their origin is %s now", r.bans, state.OriginKernel)
	fmt.Fprintf(b, "; so were %d allow entries", r.allows)
	list := func(what string, names []string) {
		if len(names) > 0 {
			if len(names) > 1 {
				what += "s"
			}
			fmt.Fprintf(b, ", the %s %s", what, strings.Join(names, ", "))
		}
	}
	list("limit", r.limits)
	list("interface", r.interfaces)
	if r.all {
		b.WriteString("; lost are who made them and why, the names of limits, the API's tokens, and which changes were on trial: these stay as they are")
	} else {
		b.WriteString("; the last change before the damage may be lost")
	}
	for _, n := range r.notes {
		b.WriteString("; " + n)
	}
	return b.String()
}

// keep makes what the kernel holds, and the state does not, part of the state; also what stands in a set
// that is about to be replaced.
func (r *rescued) keep(replaced *maps.Held) error {
	allows, err := r.tables.Allows.All()
	if err != nil {
		return err
	}
	limits := r.tables.Limits.All()
	for number, l := range replaced.Limits {
		limits[number] = l
	}
	// Allow entries come first: what they are for must not be banned for a moment.
	return errors.Join(
		r.keepAllows(append(allows, replaced.Allows...)),
		r.keepBans(both(r.tables.Bans.All(), slices.Values(replaced.Bans))),
		r.keepLimits(limits),
		r.keepInterfaces())
}

// takenBack tells whether it is known why the state does not say a prefix that the kernel has banned: it was
// taken back just now, of an import that was cut short, or it is on trial, which alone decides on it.
func (r *rescued) takenBack(p netip.Prefix) bool {
	return r.cutShort[p] || len(r.state.HeldClaims(p, "")) > 0
}

func (r *rescued) keepBans(bans iter.Seq[maps.Ban]) error {
	const part = 10_000
	var proposals []state.Proposal
	flush := func() error {
		outcomes, err := r.state.Propose(proposals)
		for i := range outcomes {
			if outcomes[i].Error == nil {
				r.bans++
			}
		}
		proposals = proposals[:0]
		return err
	}
	now := r.clock.Monotonic()
	for b := range bans {
		if _, known := r.state.Effective(b.Prefix); known || b.Expires <= now || r.takenBack(b.Prefix) {
			continue
		}
		p := state.Proposal{Prefix: b.Prefix, Origin: state.OriginKernel, Actor: rescuer, Reason: r.reason, Monitor: b.Monitor, Force: true}
		if b.Expires != bpf.Forever {
			p.For = time.Duration(b.Expires - now)
		}
		if proposals = append(proposals, p); len(proposals) == part {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

func (r *rescued) onTrial(about state.Subject, name string) bool {
	return len(r.state.Held([]state.Thing{{About: about, Name: name}})) > 0
}

// keepAllows keeps allow entries that were set at run time. Those of the configuration file and of Levee
// itself are known, and what is on trial is taken back or not with its trial.
func (r *rescued) keepAllows(allows []maps.Allow) error {
	known := map[string]bool{}
	for _, a := range r.state.Allows() {
		if a.Source == state.FromAPI {
			known[a.Prefix.String()] = true
		}
	}
	now := r.clock.Monotonic()
	var proposals []state.AllowProposal
	for _, a := range allows {
		name := a.Prefix.String()
		if a.Derived || a.Expires <= now || known[name] || r.onTrial(state.AboutAllow, name) {
			continue
		}
		known[name] = true
		p := state.AllowProposal{Actor: rescuer, AllowSpec: state.AllowSpec{Prefix: state.Prefix{Prefix: a.Prefix},
			NoLimits: a.NoLimit, Comment: "kept from the kernel: " + r.reason}}
		if a.Expires != bpf.Forever {
			p.For = time.Duration(a.Expires - now)
		}
		proposals = append(proposals, p)
	}
	outcomes, err := r.state.ProposeAllows(proposals)
	if err != nil {
		return err
	}
	for _, o := range outcomes {
		if o.Error != nil {
			r.notes = append(r.notes, "an allow entry was not kept: "+o.Error.Error())
			continue
		}
		r.allows++
	}
	return nil
}

// keepInterfaces notes for the run time what is shielded and what nobody asks for.
func (r *rescued) keepInterfaces() error {
	list, err := r.shield.Attachments()
	if err != nil || !r.all {
		return err
	}
	for _, a := range list {
		known, _ := r.state.Interface(a.Name)
		if _, _, wanted := known.Wanted(); wanted {
			continue
		}
		mode := state.ModeAuto
		if a.Mode == loader.ModeGeneric {
			mode = state.ModeGeneric
		}
		if err := r.state.RememberAttached(a.Name, mode); err != nil {
			return err
		}
		r.interfaces = append(r.interfaces, a.Name)
	}
	return nil
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
