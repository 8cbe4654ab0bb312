package state

import (
	"container/heap"
	"net/netip"
	"slices"
)

// Around is what the state knows of a prefix, and of those around and within it.
type Around struct {
	Claims     []Claim // on it, in order of precedence
	Containing []Claim // on prefixes that contain it, the most specific first
	Contained  []Claim // on prefixes within it, the newest first
	Total      int     // how many claims there are on prefixes within it
	Allows     []Allow // that contain it or lie within it
	Enforced   Extent  // of bans that enforce, less what is allowed
	Banned     Extent  // of all bans, also those that monitor, less what is allowed
	Overruled  bool    // a ban touches it, and an allow entry overrules it whole
}

// Extent is how much of a prefix something touches.
type Extent int

// The extents.
const (
	None Extent = iota
	Part
	Whole
)

// Around tells what concerns a prefix, with so many claims within it at most. It lets changes through on
// its way: one that comes in between may or may not be seen.
func (s *Store) Around(p netip.Prefix, most int) Around {
	a := Around{}
	asked := keyOf(p)
	now := s.clock.Monotonic()
	enforced, banned := extent{asked: asked}, extent{asked: asked, monitors: true}
	s.mu.RLock()
	for k := range s.covering(asked) {
		var on []Claim
		for r := range s.on(k) {
			if r.expires > now {
				on = append(on, s.claimOf(r))
				enforced.around = enforced.around || !r.monitor()
				banned.around = true
			}
		}
		slices.SortFunc(on, precede)
		if k == asked {
			a.Claims = on
		} else {
			a.Containing = append(a.Containing, on...)
		}
	}
	a.Allows = s.allows.touching(p, now)
	s.mu.RUnlock()
	allowed := outermost(a.Allows)

	var found placeHeap
	for slot, r := range s.inSteps() {
		if r.bits <= asked.bits || !asked.contains(r.key()) {
			continue
		}
		if r.head() {
			enforced.add(s.claims, slot, allowed, now)
			banned.add(s.claims, slot, allowed, now)
		}
		if r.expires <= now {
			continue
		}
		a.Total++
		switch p := (place{r.created, r.key(), r.list, slot}); {
		case len(found) < most:
			heap.Push(&found, p)
		case most > 0 && p.compare(found[0]) < 0:
			found[0] = p
			heap.Fix(&found, 0)
		}
	}
	a.Contained = s.claimsAt(found)
	a.Enforced, _ = enforced.result(allowed)
	var touched bool
	a.Banned, touched = banned.result(allowed)
	a.Overruled = touched && a.Banned == None
	return a
}

// claimsAt returns the claims that stand at places in their order, but for those that have gone.
func (s *Store) claimsAt(found []place) []Claim {
	slices.SortFunc(found, place.compare)
	claims := make([]Claim, 0, len(found))
	for part := range slices.Chunk(found, chunk) {
		s.mu.RLock()
		for _, p := range part {
			if r := s.at(p.slot); r.live() && r.key() == p.key && r.list == p.list {
				claims = append(claims, s.claimOf(r))
			}
		}
		s.mu.RUnlock()
	}
	return claims
}

// extent finds out how much of a prefix is banned.
type extent struct {
	asked    key
	monitors bool // count bans that only monitor, too
	around   bool // a ban contains all of it
	touched  bool // a ban lies within it
	left     bool // and allow entries do not overrule all of such a ban
	outmost  shares
}

// add takes note of a prefix within the one asked for, of which the first claim stands at a slot.
func (e *extent) add(c *claims, slot uint32, allowed []key, now uint64) {
	if e.around || !e.counts(c, slot, now) {
		return
	}
	k := c.at(slot).key()
	e.touched = true
	e.left = e.left || remainder(k, allowed) != None
	for wide := range c.covering(k.shorter(int(k.bits) - 1)) {
		if wide.bits <= e.asked.bits {
			break
		}
		if e.counts(c, c.head(wide), now) {
			return
		}
	}
	e.outmost[k.bits]++
}

// counts tells whether a prefix is banned, of which the first claim stands at a slot.
func (e *extent) counts(c *claims, slot uint32, now uint64) bool {
	for slot != 0 {
		r := c.at(slot)
		if r.expires > now && (e.monitors || !r.monitor()) {
			return true
		}
		slot = r.next
	}
	return false
}

// result is how much is banned, and whether a ban touches it at all, allowed or not.
func (e *extent) result(allowed []key) (banned Extent, touched bool) {
	switch {
	case e.around, e.outmost.fill(e.asked.bits):
		return remainder(e.asked, allowed), true
	case e.left:
		return Part, true
	}
	return None, e.touched
}

// outermost returns what allow entries contain, in order of address, without those within others.
func outermost(allows []Allow) (out []key) {
	for i := range allows {
		out = append(out, keyOf(allows[i].Prefix))
	}
	slices.SortFunc(out, compareKey)
	last := -1
	for _, k := range out {
		if last < 0 || !out[last].contains(k) {
			last++
			out[last] = k
		}
	}
	return out[:last+1]
}

// remainder is how much of a prefix is left over by what is allowed, as outermost gives it.
func remainder(k key, allowed []key) Extent {
	at, _ := slices.BinarySearchFunc(allowed, k, compareKey)
	if at > 0 && allowed[at-1].contains(k) {
		return None
	}
	left := Whole
	var sum shares
	for _, inner := range allowed[at:] {
		if !k.contains(inner) {
			break
		}
		left = Part
		sum[inner.bits]++
	}
	if sum.fill(k.bits) {
		return None
	}
	return left
}

// shares counts prefixes by length, of which none lies within another.
type shares [129]int

// fill tells whether they fill the prefix of a length in which all of them lie. Two halves make a
// whole; what has no other half leaves a gap.
func (n shares) fill(bits uint8) bool {
	for at := len(n) - 1; at > int(bits); at-- {
		n[at-1] += n[at] / 2
	}
	return n[bits] > 0
}
