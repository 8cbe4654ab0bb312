package state

import (
	"cmp"
	"container/heap"
	"encoding/base64"
	"encoding/binary"
	"iter"
	"net/netip"
	"slices"
	"time"
)

func (s *Store) claimOf(r *record) Claim {
	w := s.texts.text[r.words]
	return Claim{Prefix: r.key().prefix(), Origin: s.names[r.list], Actor: w.actor, Reason: w.reason,
		Created: time.Unix(0, r.created).UTC(), Expires: s.wallTime(r.expires), Monitor: r.monitor()}
}

// precede orders claims by who speaks first, and among the same rank by age.
func precede(a, b Claim) int {
	return cmp.Or(cmp.Compare(a.Origin.Rank(), b.Origin.Rank()), a.Created.Compare(b.Created), cmp.Compare(a.Origin, b.Origin))
}

// Effective says what follows for a prefix from the claims on it: it is enforced while one of them
// enforces, until the last of those ends; it is monitored if all of them only monitor. The list, whose
// counters its packets move, is that of the highest precedence among those that count. A claim that has
// ended counts until it is swept: the kernel has ended it by itself, and so both sides agree at any
// time.
func (s *Store) Effective(p netip.Prefix) (Ban, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.effective(s.head(keyOf(p)))
}

// EffectiveOf is Effective for many prefixes, of which it appends the bans to one list, and those
// that have none to another. Either is in the order in which they were asked for; places says where a
// ban's prefix stood.
func (s *Store) EffectiveOf(prefixes []netip.Prefix, bans []Ban, places []int, none []netip.Prefix) ([]Ban, []int, []netip.Prefix) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	bans, places = slices.Grow(bans, len(prefixes)), slices.Grow(places, len(prefixes))
	var keys [touched]key
	var hashes [touched]uint32
	for from := 0; from < len(prefixes); from += touched {
		part := prefixes[from:min(from+touched, len(prefixes))]
		for i, p := range part {
			keys[i] = keyOf(p)
			hashes[i] = s.index.hash(keys[i])
		}
		s.index.touch(hashes[:len(part)])
		for i, p := range part {
			_, slot := s.locate(keys[i], hashes[i])
			if ban, ok := s.effective(slot); ok {
				bans, places = append(bans, ban), append(places, from+i)
			} else {
				none = append(none, p)
			}
		}
	}
	return bans, places, none
}

// effective decides among the claims of a prefix, of which the first stands at a slot.
func (s *Store) effective(slot uint32) (Ban, bool) {
	var best *record
	expires := uint64(0)
	for slot != 0 {
		r := s.at(slot)
		slot = r.next
		switch {
		case best == nil, best.monitor() && !r.monitor():
			best, expires = r, r.expires
			continue
		case !best.monitor() && r.monitor():
			continue
		case s.precedes(r, best):
			best = r
		}
		expires = max(expires, r.expires)
	}
	if best == nil {
		return Ban{}, false
	}
	return Ban{Prefix: best.key().prefix(), List: best.list, Monitor: best.monitor(), Expires: expires}, true
}

// precedes orders claims on one prefix as precede does.
func (s *Store) precedes(r, o *record) bool {
	a, b := s.names[r.list], s.names[o.list]
	return cmp.Or(cmp.Compare(a.Rank(), b.Rank()), cmp.Compare(r.created, o.created), cmp.Compare(a, b)) < 0
}

// Bans iterates over what the kernel is to enforce. It lets changes through on its way: one that
// comes in between may or may not be seen.
func (s *Store) Bans() iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		var part []Ban
		for place := uint32(1); place != 0; {
			part, place = s.BansFrom(place, part[:0])
			for _, b := range part {
				if !yield(b) {
					return
				}
			}
		}
	}
}

// BansFrom appends some of what the kernel is to enforce, from a place on, and returns the next place,
// or 0 after the last. The first place is 1. It is Bans for who wants to rest in between.
func (s *Store) BansFrom(place uint32, bans []Ban) (some []Ban, next uint32) {
	const step = 1024
	s.mu.RLock()
	defer s.mu.RUnlock()
	for slot, r := range s.all(place, place+step) {
		if r.head() {
			if ban, ok := s.effective(slot); ok {
				bans = append(bans, ban)
			}
		}
	}
	if place+step >= s.used {
		return bans, 0
	}
	return bans, place + step
}

// All iterates over the claims of an origin, or with an empty one over all, in no order. It lets
// changes through on its way: one that comes in between may or may not be seen.
func (s *Store) All(o Origin) iter.Seq[Claim] {
	return func(yield func(Claim) bool) {
		var part []Claim
		for from := uint32(1); ; from += chunk {
			s.mu.RLock()
			list, known := s.numbers[o]
			used, now := s.used, s.clock.Monotonic()
			part = part[:0]
			for _, r := range s.all(from, from+chunk) {
				if (o == "" || known && r.list == list) && r.expires > now {
					part = append(part, s.claimOf(r))
				}
			}
			s.mu.RUnlock()
			for _, c := range part {
				if !yield(c) {
					return
				}
			}
			if from+chunk >= used {
				return
			}
		}
	}
}

// Covering returns the claims on all prefixes that contain this one, the most specific first, and
// for each prefix in order of precedence.
func (s *Store) Covering(p netip.Prefix) []Claim {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Claim
	now := s.clock.Monotonic()
	for k := range s.covering(keyOf(p)) {
		from := len(out)
		for r := range s.on(k) {
			if r.expires > now {
				out = append(out, s.claimOf(r))
			}
		}
		slices.SortFunc(out[from:], precede)
	}
	return out
}

// Filter selects claims.
type Filter struct {
	Origin Origin       // "": any
	Within netip.Prefix // invalid: any
	Since  time.Time    // made since; zero: ever
	Limit  int          // how many at most; 0: all
	After  string       // the cursor of the page before
}

// List returns claims that a filter selects, the newest first, how many it selects in all, and a
// cursor for the next page, empty if this is the last. It lets changes through on its way: one that
// comes in between may or may not be seen.
func (s *Store) List(f Filter) (page []Claim, total int, next string, failed *Error) {
	var after *place
	if f.After != "" {
		p, ok := parsePlace(f.After)
		if !ok {
			return nil, 0, "", invalid("cursor", f.After, "is not a cursor that this daemon gave")
		}
		after = &p
	}
	list := uint16(0)
	if f.Origin != "" {
		n, ok := s.numberOf(f.Origin)
		if !ok {
			return nil, 0, "", nil
		}
		list = n
	}
	since := int64(-1 << 62)
	if !f.Since.IsZero() {
		since = f.Since.UnixNano()
	}
	var within key
	if f.Within.IsValid() {
		within = keyOf(f.Within)
	}
	now := s.clock.Monotonic()
	var found placeHeap
	for slot, r := range s.inSteps() {
		if list != 0 && r.list != list || r.created < since || r.expires <= now ||
			f.Within.IsValid() && !within.contains(r.key()) {
			continue
		}
		total++
		p := place{r.created, r.key(), r.list, slot}
		if after != nil && p.compare(*after) <= 0 {
			continue
		}
		switch {
		case f.Limit == 0 || len(found) <= f.Limit:
			heap.Push(&found, p)
		case p.compare(found[0]) < 0:
			found[0] = p
			heap.Fix(&found, 0)
		}
	}
	slices.SortFunc(found, place.compare)
	if f.Limit > 0 && len(found) > f.Limit {
		found = found[:f.Limit]
		next = found[f.Limit-1].String()
	}
	return s.claimsAt(found), total, next, nil
}

// inSteps iterates over the live records, with the lock held while one is looked at, and given away every
// so many of them.
func (s *Store) inSteps() iter.Seq2[uint32, *record] {
	return func(yield func(uint32, *record) bool) {
		for from, used := uint32(1), uint32(2); from < used; from += chunk {
			going := true
			s.mu.RLock()
			used = s.used
			for slot, r := range s.all(from, from+chunk) {
				if going = yield(slot, r); !going {
					break
				}
			}
			s.mu.RUnlock()
			if !going {
				return
			}
		}
	}
}

// numberOf returns the number of an origin's list.
func (s *Store) numberOf(o Origin) (uint16, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	n, ok := s.numbers[o]
	return n, ok
}

// place is a claim's place in a listing: the newest first, and where several were made at once, by
// prefix.
type place struct {
	created int64
	key     key
	list    uint16
	slot    uint32
}

func (p place) compare(o place) int {
	return cmp.Or(cmp.Compare(o.created, p.created), compareKey(p.key, o.key), cmp.Compare(p.list, o.list))
}

func compareKey(a, b key) int {
	if a.v4 != b.v4 {
		if a.v4 {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo), cmp.Compare(a.bits, b.bits))
}

// String is the cursor.
func (p place) String() string {
	b := binary.BigEndian.AppendUint64(nil, uint64(p.created))
	b = binary.BigEndian.AppendUint64(b, p.key.hi)
	b = binary.BigEndian.AppendUint64(b, p.key.lo)
	v4 := byte(0)
	if p.key.v4 {
		v4 = 1
	}
	b = append(b, p.key.bits, v4)
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint16(b, p.list))
}

func parsePlace(s string) (place, bool) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) != 28 || b[25] > 1 {
		return place{}, false
	}
	return place{
		created: int64(binary.BigEndian.Uint64(b)),
		key:     key{binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint64(b[16:]), b[24], b[25] == 1},
		list:    binary.BigEndian.Uint16(b[26:]),
	}, true
}

// placeHeap has the last place on top.
type placeHeap []place

func (h placeHeap) Len() int           { return len(h) }
func (h placeHeap) Less(i, j int) bool { return h[i].compare(h[j]) > 0 }
func (h placeHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *placeHeap) Push(x any) { *h = append(*h, x.(place)) }

// Pop implements heap.Interface.
func (h *placeHeap) Pop() any {
	old := *h
	p := old[len(old)-1]
	*h = old[:len(old)-1]
	return p
}

// OriginCount is how many claims an origin has.
type OriginCount struct {
	Origin Origin `json:"origin"`
	List   uint16 `json:"-"`
	IPv4   int    `json:"ipv4"`
	IPv6   int    `json:"ipv6"`
}

// Origins returns the origins that have claims, in order of precedence.
func (s *Store) Origins() []OriginCount {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []OriginCount
	for list, n := range s.lists {
		if n.v4+n.v6 > 0 {
			out = append(out, OriginCount{s.names[list], uint16(list), n.v4, n.v6})
		}
	}
	slices.SortFunc(out, func(a, b OriginCount) int {
		return cmp.Or(cmp.Compare(a.Origin.Rank(), b.Origin.Rank()), cmp.Compare(a.Origin, b.Origin))
	})
	return out
}

// OriginOf names the origin of a list's number; empty if there is none.
func (s *Store) OriginOf(list uint16) Origin {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if int(list) < len(s.names) {
		return s.names[list]
	}
	return ""
}

// Prefixes returns how many prefixes have claims.
func (s *Store) Prefixes() (ipv4, ipv6 int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, n := range s.lengths[0] {
		ipv4 += n
	}
	for _, n := range s.lengths[1] {
		ipv6 += n
	}
	return ipv4, ipv6
}

// ByOriginFrom appends some of the prefixes on which an origin has a claim, from a place on, and returns
// the next place, or 0 after the last. The first place is 1. Changes may come in between: a claim that
// is made meanwhile may be among them or not.
func (s *Store) ByOriginFrom(o Origin, place uint32, prefixes []netip.Prefix) (some []netip.Prefix, next uint32) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list, ok := s.numbers[o]
	if !ok {
		return prefixes, 0
	}
	for _, r := range s.all(place, place+chunk) {
		if r.list == list {
			prefixes = append(prefixes, r.key().prefix())
		}
	}
	if place+chunk >= s.used {
		return prefixes, 0
	}
	return prefixes, place + chunk
}
