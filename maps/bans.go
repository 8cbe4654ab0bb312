package maps

import (
	"iter"
	"net/netip"
	"sync"

	"github.com/levee-xdp/levee/bpf"
)

// Bans is the ban table: which prefixes are banned, until when, and on which list. Its methods may
// be called at the same time; those that write wait for each other.
//
// Every change is made so that a packet that is read meanwhile is never let pass if its source is
// banned before and after it, nor dropped if its source is banned neither before nor after it.
// Where prefixes overlap, a source is banned while one that enforces covers it.
type Bans struct {
	mu sync.Mutex
	v4 ban4
	v6 ban6
}

func openBans(o *opener, hash hasher, control *bpf.Control) *Bans {
	// Grown at first: what the last writer did is not known.
	e := &epoch{word: &control.BanEpoch, grown: true}
	b := &Bans{
		v4: ban4{
			bits:    array[uint64](o, bpf.LeveeMapBan4Bits, true),
			classes: array[uint64](o, bpf.LeveeMapBan4Classes, true),
			wide:    array[bpf.Ban4Entry](o, bpf.LeveeMapBan4Wide, true),
			table:   hashed[bpf.Ban4Entry](o, bpf.LeveeMapBan4Table),
			hash:    hash,
			epoch:   e,
			beside:  make(map[uint64]content),
			round:   true,
		},
		v6: ban6{
			filter:  hashed[bpf.Ban6Lengths](o, bpf.LeveeMapBan6Filter),
			wide:    array[uint64](o, bpf.LeveeMapBan6Wide, true),
			table:   hashed[bpf.Ban6Entry](o, bpf.LeveeMapBan6Table),
			hash:    hash,
			epoch:   e,
			tiers:   &control.Ban6Tiers,
			version: &control.Ban6Version,
			round:   true,
		},
	}
	if o.err != nil {
		return nil
	}
	b.v4.mask = uint32(len(b.v4.table)/bpf.Ban4Slots - 1)
	b.v4.spill = make([]uint8, len(b.v4.table)/bpf.Ban4Slots)
	b.v6.mask = uint32(len(b.v6.table)/bpf.Ban6Slots - 1)
	b.v6.filterMask = uint32(len(b.v6.filter) - 1)
	b.v6.spill = make([]uint8, len(b.v6.table)/bpf.Ban6Slots)
	b.v6.fit = newFit6(len(b.v6.filter), len(b.v6.wide))
	return b
}

// adopt learns what the tables hold. A prefix that others hide in all of its slots is learnt only
// from the next Sync, which must follow if the tables were not empty.
func (b *Bans) adopt() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.v4.survey()
	b.v6.survey()
}

// Put bans a prefix, or changes its ban. Returns a *FullError, and leaves everything as it was, if
// the table has no room; other errors say what is wrong with the ban.
func (b *Bans) Put(ban Ban) error {
	if err := ban.normalise(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.put(&ban, nil); !ok {
		return b.full(ban.Prefix)
	}
	return nil
}

// PutMany puts bans as Put does each of them, and returns the errors at their places; nil if all went
// well. It takes a fraction of the time of as many calls.
func (b *Bans) PutMany(bans []Ban) (failed []error) {
	fail := func(place int, err error) {
		if failed == nil {
			failed = make([]error, len(bans))
		}
		failed[place] = err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	some := newLot(b, func(place int, ban *Ban, at slots4) {
		if _, ok := b.put(ban, at); !ok {
			fail(place, b.full(ban.Prefix))
		}
	})
	for place := range bans {
		if err := some.add(place, &bans[place]); err != nil {
			fail(place, err)
		}
	}
	some.flush()
	return failed
}

// put puts a ban, of which a lot may know the slots.
func (b *Bans) put(ban *Ban, at slots4) (change, bool) {
	v := content{expires: ban.Expires, list: ban.List, monitor: ban.Monitor}
	if addr := ban.Prefix.Addr(); addr.Is4() {
		if len(at) > 0 && b.v4.putFresh(at, ban.Prefix.Bits(), v) {
			return added, true
		}
		return b.v4.put(uint4(addr), ban.Prefix.Bits(), v)
	}
	return b.v6.put(keyOf6(ban.Prefix), v)
}

func (b *Bans) full(p netip.Prefix) *FullError {
	if p.Addr().Is4() {
		return &FullError{Prefix: p.String(), Table: bpf.LeveeMapBan4Table, Used: b.v4.used(),
			Slots: len(b.v4.table) / roomShare, Setting: "tables.ipv4_bans"}
	}
	return &FullError{Prefix: p.String(), Table: bpf.LeveeMapBan6Table, Used: b.v6.slots,
		Slots: len(b.v6.table) / roomShare, Setting: "tables.ipv6_bans"}
}

// Delete takes a prefix's ban away, and returns whether there was one. Other prefixes that cover
// the same addresses go on banning them.
func (b *Bans) Delete(p netip.Prefix) bool {
	p, err := normalPrefix(p)
	if err != nil {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if addr := p.Addr(); addr.Is4() {
		return b.v4.remove(uint4(addr), p.Bits())
	}
	return b.v6.remove(keyOf6(p))
}

// Get returns the ban of exactly this prefix, also if it has expired.
func (b *Bans) Get(p netip.Prefix) (Ban, bool) {
	p, err := normalPrefix(p)
	if err != nil {
		return Ban{}, false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	v, ok := b.get(p)
	if !ok {
		return Ban{}, false
	}
	return Ban{Prefix: p, List: v.list, Monitor: v.monitor, Expires: v.expires}, true
}

func (b *Bans) get(p netip.Prefix) (content, bool) {
	if addr := p.Addr(); addr.Is4() {
		return b.v4.get(uint4(addr), p.Bits())
	}
	return b.v6.get(keyOf6(p))
}

// Lookup answers for an address as the program does: the ban by which its packets are dropped, or
// else one that monitors, that has not expired. Several may cover the address; which of those of
// a kind is named is the table's choice. An IPv4 address mapped into IPv6 is an IPv4 address.
func (b *Bans) Lookup(addr netip.Addr) (Ban, bool) {
	if !addr.IsValid() {
		return Ban{}, false
	}
	addr = addr.Unmap().WithZone("")
	if addr.Is4() {
		if word, expires := b.v4.lookup(uint4(addr)); word != 0 {
			return contentOf(word, expires).ban(addr), true
		}
		return Ban{}, false
	}
	k := keyOf6(netip.PrefixFrom(addr, 128))
	if word, expires := b.v6.lookup(k.hi, k.lo); word != 0 {
		return content6(word, expires).ban(addr), true
	}
	return Ban{}, false
}

// Len returns how many prefixes have a ban.
func (b *Bans) Len() (v4, v6 int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.v4.alone + len(b.v4.beside), b.v6.len()
}

// Capacity returns how many slots of the hashed tables are sure to be found. What is put beyond that may
// find room or not, as chance has it. IPv4 prefixes of up to 16 bits need none.
func (b *Bans) Capacity() (v4, v6 int) {
	return len(b.v4.table) / roomShare, len(b.v6.table) / roomShare
}

// Slots returns how many slots of the hashed tables are used.
func (b *Bans) Slots() (v4, v6 int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.v4.used(), b.v6.slots
}

// PutAll puts many bans. It goes on past those that find no room or are wrong, and then returns an
// error that names the first: a *FullError if one found no room. The sequence must not call Bans.
func (b *Bans) PutAll(bans iter.Seq[Ban]) (Changes, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	l := bulk{bans: b}
	l.load(bans)
	l.release()
	l.changes.Full = len(l.left)
	return l.changes, l.err()
}

// Sync makes the table equal to a wanted set: what is wanted is put first, then what is not wanted
// is taken away, and what the table holds already is not written. So an address that is banned
// before and after is banned all the time, whichever prefixes ban it; for that, what stops enforcing
// is put when all that enforces is in place. It reads the whole table
// first, and puts right what does not belong there. Errors are those of PutAll; the wanted bans
// that found no room while the unwanted ones were there have been tried again: first when those are
// gone that ban none of their addresses, and then without any. Only addresses of the last kind, which are
// counted as late, may have passed in between; that takes more bans than Capacity says, those that are
// not wanted any more among them. The sequence must not call Bans; of a prefix that occurs twice, the last
// counts.
func (b *Bans) Sync(wanted iter.Seq[Ban]) (Changes, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	repaired := b.v4.survey() + b.v6.survey()
	changes, err := b.sync(wanted)
	changes.Repaired += repaired
	return changes, err
}

// Fill is Sync right after Open, which has read the whole table and put right what does not belong
// there: it does not do so again.
func (b *Bans) Fill(wanted iter.Seq[Ban]) (Changes, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sync(wanted)
}

// syncTurns is how often sync goes through the tables for those that found no room, at most.
const syncTurns = 8

func (b *Bans) sync(wanted iter.Seq[Ban]) (Changes, error) {
	l := bulk{bans: b}
	b.v4.mark()
	b.v6.mark()
	l.load(wanted)
	// What finds room may have been all that spared something.
	for turn := 0; turn < syncTurns && len(l.left) > 0 && l.sweep(l.lacking()); turn++ {
		l.again()
	}
	if late := len(l.left); l.sweep(nil) {
		l.again()
		l.changes.Late = late - len(l.left)
	}
	b.v4.met, b.v6.met = nil, nil
	l.release()
	l.changes.Full = len(l.left)
	return l.changes, l.err()
}

// All yields every ban, expired ones too, in no order. It holds no lock while it yields: bans that
// change meanwhile may be missed, or told twice.
func (b *Bans) All() iter.Seq[Ban] {
	return func(yield func(Ban) bool) {
		var batch []Ban
		at := 0
		for at >= 0 {
			b.mu.Lock()
			batch, at = b.some(batch[:0], at)
			b.mu.Unlock()
			for _, ban := range batch {
				if !yield(ban) {
					return
				}
			}
		}
	}
}

// some gathers bans from a position on, and returns the next position, or -1 at the end. Positions
// count the steps of some thousand slots in which the tables are walked: first what is held beside
// them, then IPv4, then IPv6.
func (b *Bans) some(batch []Ban, at int) ([]Ban, int) {
	const step = 4096
	if at == 0 {
		for k, v := range b.v4.beside {
			batch = append(batch, v.ban(addr4(uint32(k>>8))))
		}
		for _, k := range []key6{{}, halfKey(0), halfKey(1)} {
			if v := *b.v6.held(k); v != nil {
				batch = append(batch, v.ban(k.addr()))
			}
		}
		return batch, 1
	}
	slots4 := len(b.v4.table) + len(b.v4.wide)
	from := (at - 1) * step
	for i := from; i < min(from+step, slots4); i++ {
		if k, v, ok := b.v4.standing(i); ok {
			batch = append(batch, v.ban(addr4(k)))
		}
	}
	for i := max(from, slots4); i < min(from+step, slots4+len(b.v6.table)); i++ {
		if e := &b.v6.table[i-slots4]; live(e.Word) && keyOfEntry(e).length > 1 {
			k := keyOfEntry(e)
			batch = append(batch, b.v6.says(i-slots4).ban(k.addr()))
		}
	}
	if from+step >= slots4+len(b.v6.table) {
		return batch, -1
	}
	return batch, at + 1
}

// used returns how many slots of the hashed table are live.
func (b *ban4) used() int {
	return b.slots[class32] + b.slots[class28] + b.slots[class24] + b.slots[class20]
}
