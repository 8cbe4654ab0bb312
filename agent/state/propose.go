package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
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

type listedKey struct {
	key  key
	list uint16
}

// change is a transaction of claims in the making. The writer alone changes memory, so it reads
// without a lock.
type change struct {
	*Store
	now     uint64
	wall    int64
	entries []entry
	hashes  []uint32 // of the entries' keys
	before  []uint32 // of each entry: the one before it about the same prefix, counted from 1; 0 none
	pending index    // leads from a prefix to the last entry about it, counted from 1
	grown   []int    // by how many claims a list grows
	lists   []Origin // new ones
	like    Proposal // the last one whose words were found valid
}

func (s *Store) change(size int) *change {
	return &change{Store: s, now: s.clock.Monotonic(), wall: s.clock.Now().UnixNano(), pending: newIndex(s.index.seed, size),
		entries: make([]entry, 0, size), hashes: make([]uint32, 0, size), before: make([]uint32, 0, size)}
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

// touched is how many proposals are looked up at once.
const touched = 64

// touch brings what the proposals are about near; see index.touch.
func (c *change) touch(proposals []Proposal) {
	var hashes [touched]uint32
	for i := range proposals {
		hashes[i] = c.index.hash(keyOf(proposals[i].Prefix))
	}
	c.index.touch(hashes[:len(proposals)])
}

// said returns the index's cell for a prefix, and the last entry about it, counted from 1; 0 if there
// is none.
func (c *change) said(k key, hash uint32) (cell, last uint32) {
	for cell = c.pending.home(hash); ; cell = c.pending.after(cell) {
		v := c.pending.cells[cell]
		if v == 0 {
			return cell, 0
		}
		if uint32(v>>32) == hash && c.entries[uint32(v)-1].key == k {
			return cell, uint32(v)
		}
	}
}

// current is the claim of a list on a prefix as this transaction has it; nil if there is none.
func (c *change) current(k key, list uint16) *entry { return c.currentHashed(k, c.index.hash(k), list) }

func (c *change) currentHashed(k key, hash uint32, list uint16) *entry {
	_, n := c.said(k, hash)
	for ; n != 0; n = c.before[n-1] {
		if e := &c.entries[n-1]; e.list == list {
			if e.remove {
				return nil
			}
			return e
		}
	}
	for _, slot := c.locate(k, hash); slot != 0; {
		r := c.at(slot)
		if r.list == list {
			e := c.entryOf(r)
			return &e
		}
		slot = r.next
	}
	return nil
}

// says tells whether this transaction has something to say of the claim of a list on a prefix.
func (c *change) says(k key, list uint16) bool {
	_, n := c.said(k, c.index.hash(k))
	for n != 0 && c.entries[n-1].list != list {
		n = c.before[n-1]
	}
	return n != 0
}

func (c *change) add(e entry) { c.addHashed(e, c.index.hash(e.key)) }

func (c *change) addHashed(e entry, hash uint32) {
	cell, last := c.said(e.key, hash)
	c.entries, c.hashes, c.before = append(c.entries, e), append(c.hashes, hash), append(c.before, last)
	if n := uint32(len(c.entries)); last == 0 {
		c.pending.fill(cell, hash, n)
	} else {
		c.pending.lead(cell, n)
	}
}

// propose decides on one proposal.
func (c *change) propose(asked *Proposal, out *Outcome, brief bool) {
	p := *asked
	*out = Outcome{}
	if err := c.validate(&p); err != nil {
		*out = Outcome{Prefix: p.Prefix, Status: StatusRefused, Error: err}
		return
	}
	out.Prefix = p.Prefix
	if p.Remove {
		c.remove(&p, out)
		return
	}
	notes, err := c.guard(&p, brief)
	if err != nil {
		out.Status, out.Error = StatusRefused, err
		return
	}
	out.Notes = notes
	list, err := c.list(p.Origin)
	if err != nil {
		out.Status, out.Error = StatusRefused, err
		return
	}
	e := entry{key: keyOf(p.Prefix), list: list, boot: c.boot, monitor: p.Monitor,
		created: c.wall, expires: Forever, words: words{p.Actor, p.Reason}}
	if p.For > 0 {
		e.expires = c.now + uint64(p.For)
	}
	hash := c.index.hash(e.key)
	before := c.currentHashed(e.key, hash, list)
	switch {
	case before == nil:
		if err := c.room(p.Bounds); err != nil {
			out.Status, out.Error = StatusRefused, err
			return
		}
		out.Status = StatusAdded
		c.grow(list, 1)
	case before.expires == Forever && e.expires == Forever && before.monitor == e.monitor && before.reason == e.reason:
		out.Status = StatusUnchanged
		if !brief {
			out.Claim = c.claimOfEntry(before)
		}
		return
	default:
		out.Status = StatusChanged
	}
	c.addHashed(e, hash)
	out.made = Made{e.key, e.list, e.created, before}
	if !brief {
		out.Claim = c.claimOfEntry(&e)
	}
}

// room tells whether who asks may have another claim.
func (c *change) room(b *Bounds) *Error {
	if b == nil || b.Claims == 0 {
		return nil
	}
	n := 0
	for _, o := range b.Origins {
		list, ok := c.numbers[o]
		if !ok {
			i := slices.Index(c.lists, o)
			if i < 0 {
				continue
			}
			list = uint16(len(c.names) + i)
		}
		if int(list) < len(c.grown) {
			n += c.grown[list]
		}
		if int(list) < len(c.claims.lists) {
			n += c.claims.lists[list].v4 + c.claims.lists[list].v6
		}
	}
	if n < b.Claims {
		return nil
	}
	return &Error{Code: CodeForbidden, Field: "prefix", Detail: fmt.Sprintf("would be one too many: %d claims of %s live, and you may have %d", n, b.origins(), b.Claims)}
}

// grow counts a claim more of a list, or less.
func (c *change) grow(list uint16, by int) {
	for int(list) >= len(c.grown) {
		c.grown = append(c.grown, 0)
	}
	c.grown[list] += by
}

// validate is Proposal.Validate, but looks at words that many proposals share only once.
func (c *change) validate(p *Proposal) *Error {
	if p.Remove || p.Bounds != nil || c.like.Origin == "" || p.Origin != c.like.Origin || p.Reason != c.like.Reason || p.For != c.like.For {
		if err := p.Validate(); err != nil {
			return err
		}
		if !p.Remove {
			c.like = *p
		}
		return nil
	}
	return p.validatePrefix()
}

func (c *change) remove(p *Proposal, out *Outcome) {
	out.Status = StatusRemoved
	k := keyOf(p.Prefix)
	var lists []uint16
	for _, n := c.said(k, c.index.hash(k)); n != 0; n = c.before[n-1] {
		if list := c.entries[n-1].list; !slices.Contains(lists, list) {
			lists = append(lists, list)
		}
	}
	for r := range c.on(k) {
		if !slices.Contains(lists, r.list) {
			lists = append(lists, r.list)
		}
	}
	var others []string
	for _, list := range lists {
		e := c.current(k, list)
		if e == nil {
			continue
		}
		if !p.All && c.origin(list) != p.Origin {
			others = append(others, string(c.origin(list)))
			continue
		}
		claim := c.claimOfEntry(e)
		out.Removed = append(out.Removed, *claim)
		if !p.All {
			out.Claim = claim
		}
		c.add(entry{remove: true, key: k, list: list})
		c.grow(list, -1)
	}
	if len(out.Removed) > 0 {
		return
	}
	out.Status = StatusRefused
	out.Error = &Error{Code: CodeNotFound, Field: "prefix", Value: PrefixString(p.Prefix)}
	switch {
	case len(others) > 0:
		slices.Sort(others)
		out.Error.Detail = fmt.Sprintf("has no claim of %s; it is banned by %s", p.Origin, strings.Join(others, ", "))
	default:
		out.Error.Detail = "is not banned"
		if wide := c.wider(k); wide != "" {
			out.Error.Detail += " itself; it lies within " + wide
		}
	}
}

// wider names the ban that contains a prefix, if there is one.
func (c *change) wider(k key) string {
	for w := range c.covering(k) {
		if w != k {
			return "the ban of " + PrefixString(w.prefix())
		}
	}
	return ""
}

func (c *change) origin(list uint16) Origin {
	if int(list) < len(c.names) {
		return c.names[list]
	}
	return c.lists[int(list)-len(c.names)]
}

// list returns an origin's number, or gives it the next one.
func (c *change) list(o Origin) (uint16, *Error) {
	if n, ok := c.numbers[o]; ok {
		return n, nil
	}
	if i := slices.Index(c.lists, o); i >= 0 {
		return uint16(len(c.names) + i), nil
	}
	n := len(c.names) + len(c.lists)
	if n >= MaxLists {
		return 0, &Error{Code: CodeFull, Field: "origin", Value: string(o),
			Detail: fmt.Sprintf("would be one too many: %d origins have spoken, the kernel counts no more", n-1)}
	}
	c.lists = append(c.lists, o)
	return uint16(n), nil
}

func (c *change) claimOfEntry(e *entry) *Claim {
	return &Claim{Prefix: e.key.prefix(), Origin: c.origin(e.list), Actor: e.actor, Reason: e.reason,
		Created: time.Unix(0, e.created).UTC(), Expires: c.wallTime(c.fromBoot(e.expires, e.boot)), Monitor: e.monitor}
}

// complete fills in what is known once the transaction is in memory.
func (c *change) complete(o *Outcome) {
	if o.Status == StatusRefused {
		return
	}
	mine := Origin("")
	if o.Claim != nil && o.Status != StatusRemoved {
		mine = o.Claim.Origin
	}
	for r := range c.on(keyOf(o.Prefix)) {
		if c.names[r.list] != mine {
			o.Others = append(o.Others, c.claimOf(r))
		}
	}
}

// save writes the transaction, and then has memory follow.
func (c *change) save() *Error {
	s := c.Store
	g := s.segments
	var carried []carry
	failed := s.write("write the change", func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bucketSegments)
		g, carried = s.segments, nil
		for i, o := range c.lists {
			n := binary.BigEndian.AppendUint16(nil, uint16(len(s.names)+i))
			if err := tx.Bucket(bucketLists).Put([]byte(o), n); err != nil {
				return err
			}
		}
		if err := s.saveBoot(tx); err != nil {
			return err
		}
		first := g.next
		for part := range slices.Chunk(c.entries, segmentEntries) {
			if err := g.append(bucket, part); err != nil {
				return err
			}
		}
		var err error
		if carried, err = c.clean(bucket, &g, first); err != nil {
			return err
		}
		meta := tx.Bucket(bucketMeta)
		if err := meta.Put(keyWall, binary.BigEndian.AppendUint64(nil, uint64(c.wall))); err != nil {
			return err
		}
		return meta.Put(keyLog, encodeLog(g))
	})
	if failed != nil {
		return failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.segments.next
	s.segments = g
	s.bootSaved, s.wall = true, c.wall
	for _, o := range c.lists {
		s.numbers[o] = uint16(len(s.names))
		s.names = append(s.names, o)
	}
	for i := range c.entries {
		e := &c.entries[i]
		if e.remove {
			s.forget(e.key, e.list)
			continue
		}
		r := s.recordOf(e, first+uint64(i/segmentEntries))
		r.words = s.texts.hold(e.words)
		s.putHashed(r, c.hashes[i])
	}
	for _, m := range carried {
		if r := s.find(m.key, m.list); r != nil && int32(r.segment-uint32(first)) < 0 {
			r.segment = uint32(m.segment)
		}
	}
	return nil
}

func (s *Store) saveBoot(tx *bbolt.Tx) error {
	if s.bootSaved {
		return nil
	}
	b := s.boots[s.boot]
	v := append(binary.BigEndian.AppendUint64(nil, uint64(b.offset)), b.id...)
	return tx.Bucket(bucketBoots).Put(binary.BigEndian.AppendUint16(nil, s.boot), v)
}

func (g *segments) append(b *bbolt.Bucket, entries []entry) error {
	if err := b.Put(segmentKey(g.next), encodeSegment(entries)); err != nil {
		return err
	}
	g.next++
	g.entries += len(entries)
	return nil
}

// carry is a claim that was written anew, and where.
type carry struct {
	listedKey
	segment uint64
}

// clean takes up segments at the log's tail while most of the log is history, or is in too many
// small pieces. What it costs is bounded by what the commit itself writes. A removal at the tail has
// nothing before it that it could remove, so it is dropped.
func (c *change) clean(b *bbolt.Bucket, g *segments, first uint64) ([]carry, error) {
	var keep []entry
	var carried []carry
	budget := 2*len(c.entries) + 512
	for taken := 0; taken < 64 && budget > 0 && g.first < first; taken++ {
		history := g.entries > 2*(c.live+len(c.entries))+1024
		pieces := g.next-g.first > uint64(2048+c.live/64)
		if !history && !pieces {
			break
		}
		k := segmentKey(g.first)
		err := decodeSegment(b.Get(k), func(e *entry) error {
			budget--
			g.entries--
			if e.remove || c.says(e.key, e.list) {
				return nil
			}
			if r := c.find(e.key, e.list); r != nil && r.segment == uint32(g.first) && r.expires > c.now {
				keep = append(keep, *e)
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", g.first, err)
		}
		if err := b.Delete(k); err != nil {
			return nil, err
		}
		g.first++
	}
	for part := range slices.Chunk(keep, segmentEntries) {
		for i := range part {
			carried = append(carried, carry{listedKey{part[i].key, part[i].list}, g.next})
		}
		if err := g.append(b, part); err != nil {
			return nil, err
		}
	}
	return carried, nil
}

// Expired is a claim that ended by itself.
type Expired struct {
	Prefix netip.Prefix
	Origin Origin
}

// Sweep forgets the claims that have ended, at most a number of them, and returns them with the
// time of the next, in ns of CLOCK_MONOTONIC, or Forever. Nothing is written: what is on disk says
// itself when it ends.
func (s *Store) Sweep(most int) (ended []Expired, next uint64) {
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.clock.Monotonic()
	for {
		next = s.earliest()
		if next > now || len(ended) >= most {
			return ended, next
		}
		r := s.at(s.due[0].slot)
		ended = append(ended, Expired{r.key().prefix(), s.names[r.list]})
		s.forget(r.key(), r.list)
	}
}

// Tick looks whether the wall clock was set. Bans of this boot do not care; those from before it
// were promised by the wall clock and follow it. It tells whether any did.
func (s *Store) Tick() (moved bool) {
	const tolerance = int64(time.Second)
	s.writer.Lock()
	defer s.writer.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	offset := s.offsetNow()
	by := offset - s.boots[s.boot].offset
	if by > -tolerance && by < tolerance {
		return false
	}
	for _, r := range s.all(1, s.used) {
		if r.boot != s.boot && r.expires != Forever {
			r.expires = uint64(max(int64(r.expires)-by, 0))
			moved = true
		}
	}
	moved = s.allows.follow(by, s.boots[s.boot].id) || moved
	s.boots[s.boot].offset, s.bootSaved = offset, false
	s.reschedule()
	s.log.Warn("the wall clock was set", "by", time.Duration(by).String())
	if err := s.write("note the clock", s.saveBoot); err == nil {
		s.bootSaved = true
	}
	return moved
}
