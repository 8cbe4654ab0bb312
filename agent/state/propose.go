package state

import (
	"errors"
	"fmt"
	"slices"
)

// request is one call of Propose that waits for its commit.
type request struct {
	proposals []Proposal
	brief     bool    // outcomes say no more than they must
	undo      []entry // written as they are
	revert    []Made  // put back as it was before
	whole     bool    // see ProposeWhole
	outcomes  []Outcome
	err       *Error
	done      bool

	drop       bool // see DropWhole
	dropped    Dropped
	carriedOut bool          // there was something to drop
	damaged    *DamagedError // beside err: the file is not what was written
}

// size is about how many entries it takes.
func (r *request) size() int { return len(r.proposals) + len(r.undo) + len(r.revert) }

// commitEntries bounds what calls that wait for each other put into one transaction.
const commitEntries = 1 << 16

// Propose makes and takes back claims. Each proposal gets its outcome, in order; those that are
// refused leave the others alone. When it returns, what was granted is on disk. The error says that
// the disk did not take it: then nothing was changed.
func (s *Store) Propose(proposals []Proposal) ([]Outcome, error) {
	r := &request{proposals: proposals}
	s.submit(r)
	if r.err != nil {
		return nil, r.err
	}
	return r.outcomes, nil
}

// ProposeBriefly is Propose for many proposals of which nobody asks for more than what came of them:
// outcomes tell neither the claim, nor those of others, nor notes. They are written to out, which
// has as many.
func (s *Store) ProposeBriefly(proposals []Proposal, out []Outcome) error {
	r := &request{proposals: proposals, brief: true, outcomes: out}
	s.submit(r)
	if r.err != nil {
		return r.err
	}
	return nil
}

// Revert puts back what the origins had said before these claims were made, in this order, unless they
// have said something else since. It is for claims that the kernel did not take.
func (s *Store) Revert(made []Made) error {
	if len(made) == 0 {
		return nil
	}
	r := &request{revert: made}
	s.submit(r)
	return asError(r.err)
}

// submit has a request committed: by this caller together with all that wait, or by another one.
func (s *Store) submit(r *request) {
	s.queue.Lock()
	s.waiting = append(s.waiting, r)
	s.queue.Unlock()

	s.writer.Lock()
	defer s.writer.Unlock()
	for !r.done {
		s.queue.Lock()
		n, size := 0, 0
		for n < len(s.waiting) && (n == 0 || size < commitEntries) {
			size += s.waiting[n].size()
			n++
		}
		batch := slices.Clone(s.waiting[:n])
		s.waiting = slices.Delete(s.waiting, 0, n)
		s.queue.Unlock()
		s.commit(batch)
	}
}

func (s *Store) commit(batch []*request) {
	size := 0
	for _, r := range batch {
		size += r.size()
	}
	c := s.change(size)
	var failed *Error
	for i, r := range batch {
		if i > 0 {
			c.wall++ // what is taken back is told by when it was made, so no two requests make something at once
		}
		c.whole = r.whole
		if r.outcomes == nil {
			r.outcomes = make([]Outcome, len(r.proposals))
		}
		for i := range r.proposals {
			if i%touched == 0 {
				c.touch(r.proposals[i:min(i+touched, len(r.proposals))])
			}
			c.propose(&r.proposals[i], &r.outcomes[i], r.brief)
		}
		if r.whole {
			c.note(r)
		}
		for _, e := range r.undo {
			c.add(e)
		}
		for i := range slices.Backward(r.revert) {
			m := &r.revert[i]
			c.takeBack(m.created, []entry{m.back()})
		}
		if r.drop {
			if err := c.drop(r); err != nil {
				r.err = &Error{Code: CodeStorage, Field: "state", Value: s.config.Path, Detail: fmt.Sprintf("take back what was not done whole: %v", err)}
				r.damaged, _ = errors.AsType[*DamagedError](err)
			}
		}
	}
	if failed == nil && (len(c.entries) > 0 || c.carriedOut != nil) {
		failed = c.save()
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range batch {
		if r.done = true; failed != nil {
			r.err = failed
		}
		if failed != nil || r.brief {
			continue
		}
		for i := range r.outcomes {
			c.complete(&r.outcomes[i])
		}
	}
}
