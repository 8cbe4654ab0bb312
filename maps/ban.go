package maps

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/levee-xdp/levee/bpf"
)

// Ban is one banned prefix, as the kernel knows it.
type Ban struct {
	Prefix  netip.Prefix // masked; an IPv4 prefix mapped into IPv6 is an IPv4 prefix
	List    uint16       // whose counters its packets move; less than bpf.MaxLists
	Monitor bool         // count its packets as banned, and pass them
	Expires uint64       // ns of CLOCK_MONOTONIC, or bpf.Forever
}

// normalise makes a ban as the tables keep it, or says what is wrong with it.
func (b *Ban) normalise() error {
	p, err := normalPrefix(b.Prefix)
	if err != nil {
		return err
	}
	if uint32(b.List) >= bpf.MaxLists {
		return fmt.Errorf("ban %s: list %d is not below %d", p, b.List, bpf.MaxLists)
	}
	b.Prefix = p
	return nil
}

// normalPrefix masks a prefix, and makes an IPv4 one of an IPv4 prefix mapped into IPv6.
func normalPrefix(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return p, fmt.Errorf("not a prefix: %s", p)
	}
	if addr := p.Addr(); addr.Is4() && uint4(addr) == mask4(uint4(addr), p.Bits()) {
		return p, nil // as nearly all are
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// content is what a prefix says, or what a slot says of the prefix that stands in it.
type content struct {
	expires uint64
	list    uint16
	length  uint8 // of the prefix, which may be wider than its slot
	monitor bool
	round   bool // of a prefix outside its slot: seen in the round of Sync that bears this sign
}

// beats tells which of two prefixes that share a slot stands in it. An enforcing one beats one that
// monitors; then the one that lasts longer wins, so that the slot never ends before a prefix that
// lost it; then the more specific one.
func (c content) beats(o content) bool {
	if c.monitor != o.monitor {
		return o.monitor
	}
	if c.expires != o.expires {
		return c.expires > o.expires
	}
	return c.length > o.length
}

func (c content) same(o content) bool {
	c.round = o.round
	return c == o
}

func (c content) ban(addr netip.Addr) Ban {
	// The prefix was masked when it was put: this only cuts off what the address has more.
	p, _ := addr.Prefix(int(c.length))
	return Ban{Prefix: p, List: c.list, Monitor: c.monitor, Expires: c.expires}
}

// word returns a slot's word without its key (and IPv4's class): see enum ban_word.
func (c *content) word() uint64 {
	w := uint64(c.list)<<bpf.BanListShift | uint64(c.length)<<bpf.BanLengthShift | bpf.BanLive
	if c.monitor {
		w |= bpf.BanMonitor
	}
	return w
}

func contentOf(word, expires uint64) content {
	return content{
		expires: expires,
		list:    uint16(word >> bpf.BanListShift),
		length:  uint8(word >> bpf.BanLengthShift),
		monitor: word&bpf.BanMonitor != 0,
	}
}

func live(word uint64) bool { return word&bpf.BanLive != 0 }

// free tells whether a slot ends a reader's search: it is neither live nor a tombstone.
func free(word uint64) bool { return word&(bpf.BanLive|bpf.BanTombstone) == 0 }

func enforces(word uint64) bool { return word&(bpf.BanLive|bpf.BanMonitor) == bpf.BanLive }

// epoch is the writer's hand on control->ban_epoch. A reader that found no ban looks again if the
// epoch rose while it searched. It must rise between making one prefix visible and taking another
// away, for then an address that both cover was banned all the time, and a reader may have looked
// for each of them at the wrong moment: for the new one before it came, for the old one after it
// went. In detail: a reader that misses the old prefix either read the epoch before it rose, and
// sees at its end that it rose (the rise is stored before the old word is cleared); or it read the
// epoch after it rose, and then it sees the new prefix (stored before the rise).
type epoch struct {
	word  *uint64
	grown bool // something came since it last rose
}

// grew says that something was made visible.
func (e *epoch) grew() { e.grown = true }

// shrinks must be called before something visible is taken away.
func (e *epoch) shrinks() {
	if e.grown {
		e.grown = false
		atomic.AddUint64(e.word, 1)
	}
}

// replace changes what a live slot says, in place. The key stays, so a reader sees the old word or
// the new one, with the old expiry or the new one; the order of the two stores leaves only mixtures
// that are right:
//
//   - Both enforce, or both monitor, or an enforcing one follows a monitoring one: the new expiry
//     first. In between the slot says what it said before, until the new time: it bans no longer
//     than the new one, and no reader finds it unbanned if it is banned before and after.
//   - A monitoring one follows an enforcing one: the new word first. The other way round, an
//     enforcing entry that has expired would ban again until the new time.
//
// A reader that read the old word and then finds the new one reads the slot again (ban_read).
func (e *epoch) replace(word, expires *uint64, newWord, newExpires uint64) bool {
	oldWord, oldExpires := atomic.LoadUint64(word), atomic.LoadUint64(expires)
	if oldWord == newWord && oldExpires == newExpires {
		return false
	}
	eases := enforces(oldWord) && !enforces(newWord)
	if eases || newExpires < oldExpires {
		e.shrinks()
	}
	if eases {
		store(word, newWord)
		store(expires, newExpires)
	} else {
		if oldExpires != newExpires {
			store(expires, newExpires)
		}
		if oldWord != newWord {
			store(word, newWord)
		}
	}
	e.grew()
	return true
}

// marks is a bit for each slot of a table: whether Sync has met its prefix in the wanted set.
type marks []uint64

func (m marks) get(i int) bool { return m[i/64]>>(i%64)&1 != 0 }
func (m marks) set(i int)      { m[i/64] |= 1 << (i % 64) }
func (m marks) clear(i int)    { m[i/64] &^= 1 << (i % 64) }

// lived tells whether an expiry lies ahead, as the program judges it.
func lived(expires uint64) bool { return expires == bpf.Forever || expires > coarse() }
