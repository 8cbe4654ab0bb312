package state

import (
	"slices"
)

// request is one call of Propose that waits for its commit.
type request struct {
	proposals []Proposal
	brief     bool    // outcomes say no more than they must
	undo      []entry // written as they are
	outcomes  []Outcome
	err       *Error
	done      bool
}

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

// Revert puts back what the origins had said before these claims were made, unless they have said
// something else since. It is for claims that the kernel did not take.
func (s *Store) Revert(made []Made) error {
	r := &request{}
	s.mu.RLock()
	for i := range made {
		m := &made[i]
		cur := s.find(m.key, m.list)
		if cur == nil || cur.created != m.created {
			continue
		}
		if m.before != nil {
			r.undo = append(r.undo, *m.before)
		} else {
			r.undo = append(r.undo, entry{remove: true, key: m.key, list: m.list})
		}
	}
	s.mu.RUnlock()
	if len(r.undo) == 0 {
		return nil
	}
	s.submit(r)
	if r.err != nil {
		return r.err
	}
	return nil
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
			size += len(s.waiting[n].proposals) + len(s.waiting[n].undo)
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
		size += len(r.proposals) + len(r.undo)
	}
	c := s.change(size)
	for _, r := range batch {
		if r.outcomes == nil {
			r.outcomes = make([]Outcome, len(r.proposals))
		}
		for i := range r.proposals {
			if i%touched == 0 {
				c.touch(r.proposals[i:min(i+touched, len(r.proposals))])
			}
			c.propose(&r.proposals[i], &r.outcomes[i], r.brief)
		}
		for _, e := range r.undo {
			c.add(e)
		}
	}
	var failed *Error
	if len(c.entries) > 0 {
		failed = c.save()
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range batch {
		r.done, r.err = true, failed
		if failed != nil || r.brief {
			continue
		}
		for i := range r.outcomes {
			c.complete(&r.outcomes[i])
		}
	}
}
