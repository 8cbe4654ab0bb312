package agent

import (
	"cmp"
	"fmt"
	"iter"
	"net/netip"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/levee-xdp/levee/agent/state"
)

// bulkPart is how many lines of a bulk are decided at once. It is small: a single change that comes
// meanwhile waits for one part, and not for the bulk.
const bulkPart = 4096

// bulkMemory is from how many lines on the memory that a bulk took is given back to the system.
const bulkMemory = 100_000

// What is kept of a bulk that is taken whole or not at all.
const (
	maxWhole = 2 << 20 // lines
	maxFar   = 1 << 18 // lines of who asks from another host
	maxKinds = 1 << 14 // different things that they say beside their prefixes
)

// BanBulk makes the claims of a bulk, part by part, or with Whole only if none is refused.
func (e *engine) BanBulk(by state.Actor, r state.BulkRequest, lines state.BulkLines) (out state.BulkResponse, err error) {
	defer func() {
		// Lines that can't be read are refused before their part is decided on.
		slices.SortFunc(out.Errors, func(a, b state.BulkError) int { return cmp.Compare(a.Line, b.Line) })
		if out.Lines >= bulkMemory {
			debug.FreeOSMemory()
		}
	}()
	if r.Force {
		if refused := by.MayForce(); refused != nil {
			return out, refused
		}
	}
	b := bulk{engine: e, by: by, request: r, answer: &out}
	if !r.Whole {
		belt := newBelt(b.commit, b.tell)
		err = b.read(lines, belt.take)
		if failed := belt.end(); failed != nil {
			err = failed
		}
		if err != nil && b.done() > 0 {
			err = after(err, b.done())
		}
		return out, err
	}
	if err := b.read(lines, b.judge); err != nil {
		return out, err
	}
	if out.Refused > 0 {
		out.Nothing = true
		return out, nil
	}
	e.bulk.Lock() // one at a time; not while it is read, which takes as long as its sender likes
	defer e.bulk.Unlock()
	return out, b.commitWhole()
}

// AllBans iterates over the claims of an origin, or with an empty one over all.
func (e *engine) AllBans(origin state.Origin) iter.Seq[state.Claim] { return e.state.All(origin) }

// after says in an error that some of a bulk was done before it came.
func after(err error, done int) error {
	failed := *state.AsError(err, state.CodeKernel)
	failed.Detail += fmt.Sprintf("; %d lines before that were done", done)
	return &failed
}

// bulk is a bulk on its way.
type bulk struct {
	*engine
	by      state.Actor
	request state.BulkRequest
	answer  *state.BulkResponse
	mu      sync.Mutex // guards what answer says of refusals while parts are on their way

	last state.BanItem  // the one before, without its prefix
	like state.Proposal // and what became of it
	bad  *state.Error   // or what is wrong with it

	// With Whole:
	kinds []state.Proposal // all that differ by more than their prefix
	kept  []keptLine
	held  []state.Thing // that are on trial until all is decided
}

// part is so many lines as are decided at once.
type part struct {
	proposals []state.Proposal
	lines     []int // of them
	outcomes  []state.Outcome
}

func newPart() *part {
	return &part{proposals: make([]state.Proposal, 0, bulkPart), lines: make([]int, 0, bulkPart), outcomes: make([]state.Outcome, bulkPart)}
}

func (p *part) reset() { p.proposals, p.lines = p.proposals[:0], p.lines[:0] }

func (p *part) add(proposal state.Proposal, line int) {
	p.proposals, p.lines = append(p.proposals, proposal), append(p.lines, line)
}

// out is what came of the proposals.
func (p *part) out() []state.Outcome { return p.outcomes[:len(p.proposals)] }

// keptLine is a line that waits until all are known to be good.
type keptLine struct {
	prefix netip.Prefix
	kind   uint32
	line   uint32
}

func (b *bulk) done() int { return b.answer.Added + b.answer.Changed + b.answer.Unchanged }

// refuse counts a line that was refused.
func (b *bulk) refuse(line int, prefix string, err *state.Error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer.Refuse(line, prefix, err)
}

// read makes proposals of lines, and hands them on part by part, for an empty part each.
func (b *bulk) read(lines state.BulkLines, each func(*part) (*part, error)) error {
	p := newPart()
	var failed error
	flush := func() bool {
		if len(p.proposals) > 0 {
			p, failed = each(p)
		}
		return failed == nil
	}
	err := lines(func(l state.BulkLine) bool {
		b.answer.Lines++
		if l.Err != nil {
			b.refuse(l.Number, l.Item.Prefix, l.Err)
			return true
		}
		proposal, err := b.proposal(&l.Item)
		if err != nil {
			b.refuse(l.Number, l.Item.Prefix, err)
			return true
		}
		p.add(proposal, l.Number)
		return len(p.proposals) < bulkPart || flush()
	})
	switch {
	case failed != nil:
		return failed
	case err != nil && b.request.Whole:
		return err
	}
	flush()
	if err == nil {
		err = failed
	}
	return err
}

// proposal makes a proposal of a line. What it says beside its prefix is mostly what the one before
// said, and is then not worked out again.
func (b *bulk) proposal(item *state.BanItem) (state.Proposal, *state.Error) {
	prefix, err := state.ParsePrefix(item.Prefix)
	if err != nil {
		return state.Proposal{}, state.AsError(err, state.CodeInvalid)
	}
	rest := *item
	rest.Prefix = ""
	if rest != b.last || b.like.Origin == "" && b.bad == nil {
		b.last = rest
		b.like, b.bad = b.engine.proposal(b.by, b.defaults(*item), b.request.Force)
	}
	p := b.like
	p.Prefix = prefix
	if b.bad == nil && item.Via != "" {
		return p, b.viaProxy(prefix, item.Via)
	}
	return p, b.bad
}

// defaults gives an item what it does not say itself.
func (b *bulk) defaults(item state.BanItem) state.BanItem {
	if item.Origin == "" {
		item.Origin = b.request.Origin
	}
	if item.Reason == "" {
		item.Reason = b.request.Reason
	}
	if item.For == "" && item.Expires.IsZero() {
		item.For, item.Expires = b.request.For, b.request.Expires
	}
	item.Monitor = item.Monitor || b.request.Monitor
	return item
}

// commit decides on a part: on the disk, of which decided is told, and then in the kernel.
func (b *bulk) commit(p *part, decided func(error)) error {
	out := p.out()
	b.trials.order.RLock()
	defer b.trials.order.RUnlock()
	return b.reconciler.Change(func() error {
		propose := b.state.ProposeBriefly
		if b.request.Whole {
			propose = b.state.ProposeWhole
		}
		err := propose(p.proposals, out)
		decided(err)
		if err != nil {
			return err
		}
		if err := b.enforce(out); err != nil {
			return err
		}
		held := b.state.Held(b.settledBans(p.proposals, out))
		if b.request.Whole {
			b.held = append(b.held, held...) // it may yet be taken back
			return nil
		}
		return b.release(held)
	})
}

// tell says everywhere what came of a part.
func (b *bulk) tell(p *part) {
	out := p.out()
	b.decided(p.proposals, out)
	b.audited(p)
	for i := range out {
		if out[i].Status == state.StatusRefused {
			b.refuse(p.lines[i], state.PrefixString(out[i].Prefix), out[i].Error)
		} else {
			b.answer.Count(out[i].Status)
		}
	}
}

// judge looks whether a part would be refused, and keeps it.
func (b *bulk) judge(part *part) (*part, error) {
	out := part.out()
	b.state.Judge(part.proposals, out)
	most := maxWhole
	if b.by.Address.IsValid() {
		most = maxFar
	}
	for i := range out {
		if out[i].Status == state.StatusRefused {
			b.refuse(part.lines[i], state.PrefixString(out[i].Prefix), out[i].Error)
			continue
		}
		p := part.proposals[i]
		p.Prefix = netip.Prefix{}
		if n := len(b.kinds); n == 0 || b.kinds[n-1] != p {
			b.kinds = append(b.kinds, p)
		}
		if len(b.kept) >= most || len(b.kinds) > maxKinds {
			return part, &state.Error{Code: state.CodeInvalid, Field: "whole", Detail: fmt.Sprintf("takes %d lines at most, which say at most %d things beside their prefixes; leave it out, or send less at once", most, maxKinds)}
		}
		b.kept = append(b.kept, keptLine{out[i].Prefix, uint32(len(b.kinds) - 1), uint32(part.lines[i])})
	}
	part.reset()
	return part, nil
}

// commitWhole decides on what was kept. If something is refused after all, for want of room or since
// the world has changed meanwhile, what was done is taken back.
func (b *bulk) commitWhole() error {
	b.trials.whole.Lock()
	defer b.trials.whole.Unlock()
	if err := b.dropWhole(wasCutShort); err != nil { // of one before, that could not be taken back
		return err
	}
	part := newPart()
	for from := 0; from < len(b.kept); from += bulkPart {
		part.reset()
		for _, k := range b.kept[from:min(from+bulkPart, len(b.kept))] {
			p := b.kinds[k.kind]
			p.Prefix = k.prefix
			part.add(p, int(k.line))
		}
		if err := b.commit(part, func(error) {}); err != nil {
			return b.takeAllBack(err)
		}
		b.tell(part)
		if b.answer.Refused > 0 {
			return b.takeAllBack(nil)
		}
	}
	b.trials.order.RLock()
	defer b.trials.order.RUnlock()
	if err := b.state.KeepWhole(b.held...); err != nil { // until then a daemon that ends has done nothing
		return b.takeAllBack(err)
	}
	return nil
}
