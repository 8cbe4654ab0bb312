package state

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// touched is how many proposals are looked up at once.
const touched = 64

type listedKey struct {
	key  key
	list uint16
}

// change is a transaction of claims in the making. The writer alone changes memory, so it reads
// without a lock.
type change struct {
	*Store
	now        uint64
	wall       int64
	entries    []entry
	hashes     []uint32 // of the entries' keys
	before     []uint32 // of each entry: the one before it about the same prefix, counted from 1; 0 none
	pending    index    // leads from a prefix to the last entry about it, counted from 1
	grown      []int    // by how many claims a list grows
	lists      []Origin // new ones
	notes      []note   // of parts of a whole
	whole      bool     // what is being decided on is a part of one
	carriedOut []byte   // the note that this transaction carries out; nil: none
	like       Proposal // the last one whose words were found valid
}

func (s *Store) change(size int) *change {
	return &change{Store: s, now: s.clock.Monotonic(), wall: s.clock.Now().UnixNano(), pending: newIndex(s.index.seed, size),
		entries: make([]entry, 0, size), hashes: make([]uint32, 0, size), before: make([]uint32, 0, size)}
}

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
		if e.expires = p.Until; p.Until == 0 {
			e.expires = c.now + uint64(p.For)
		}
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
		if c.undecided && !c.whole { // it may be of a whole that is taken back, and this is not
			c.addHashed(e, hash)
			again := e // and not e itself, which would have to be on the heap for all
			before = &again
		}
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
