package maps

import (
	"fmt"
	"iter"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// model is what the ban table stands for: a set of prefixes, of which those that contain an address
// and have not expired speak for it. It knows nothing of slots, classes or filters.
type model map[netip.Prefix]Ban

func (m model) put(ban Ban) {
	ban.Prefix = plain(ban.Prefix)
	m[ban.Prefix] = ban
}

// plain masks a prefix, and maps IPv4 out of IPv6, in the plainest way.
func plain(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// answer is what may be said of an address.
type answer struct {
	banned    bool // one that enforces covers it
	monitored bool // none does, but one that monitors
	either    bool // … and one that enforces and has expired hides it, perhaps, until it is deleted
	covers    []Ban
}

// answerOf is what may be said of an address that these bans cover.
func answerOf(bans iter.Seq[Ban], now uint64) (a answer) {
	expired := false
	for ban := range bans {
		switch {
		case ban.Expires != bpf.Forever && ban.Expires <= now:
			expired = expired || !ban.Monitor
			continue
		case ban.Monitor:
			a.monitored = true
		default:
			a.banned = true
		}
		a.covers = append(a.covers, ban)
	}
	a.monitored = a.monitored && !a.banned
	a.either = a.monitored && expired
	return a
}

func (m model) ask(addr netip.Addr, now uint64) answer {
	return answerOf(func(yield func(Ban) bool) {
		for length := addr.BitLen(); length >= 0; length-- {
			p, err := addr.Prefix(length)
			if err != nil {
				panic(err)
			}
			if ban, ok := m[p]; ok && !yield(ban) {
				return
			}
		}
	}, now)
}

// check says what is wrong with an answer of Lookup.
func (a answer) check(addr netip.Addr, got Ban, ok bool) error {
	switch {
	case a.banned && (!ok || got.Monitor), a.monitored && !a.either && (!ok || !got.Monitor),
		!a.banned && !a.monitored && ok, a.monitored && ok && !got.Monitor:
		return fmt.Errorf("%s: got %+v %v, want one of %+v", addr, got, ok, a.covers)
	}
	if ok && !slices.Contains(a.covers, got) {
		return fmt.Errorf("%s: got %+v, which is none of %+v", addr, got, a.covers)
	}
	return nil
}

// world draws prefixes and addresses that have to do with each other.
type world struct {
	*rand.Rand
	bases4 []uint32
	bases6 []key6
	now    uint64
}

func newWorld(r *rand.Rand) *world {
	w := &world{Rand: r, now: Monotonic()}
	for range 6 {
		w.bases4 = append(w.bases4, r.Uint32())
		w.bases6 = append(w.bases6, key6{hi: r.Uint64(), lo: r.Uint64()})
	}
	return w
}

func (w *world) addr4() netip.Addr {
	// Differs from a base in some of its last bits, few as a rule.
	near := uint32(uint64(w.Uint32()) >> w.IntN(33))
	return addr4(w.bases4[w.IntN(len(w.bases4))] ^ near)
}

func (w *world) addr6() netip.Addr {
	base := w.bases6[w.IntN(len(w.bases6))]
	switch n := w.IntN(129); {
	case n >= 64:
		base.lo ^= w.Uint64() >> (n - 64)
	default:
		base.hi ^= w.Uint64() >> n >> 1
		base.lo = w.Uint64()
	}
	return base.addr()
}

func (w *world) addr(v6 bool) netip.Addr {
	if v6 {
		return w.addr6()
	}
	return w.addr4()
}

func (w *world) prefix(v6 bool) netip.Prefix {
	addr := w.addr(v6)
	length := w.IntN(addr.BitLen() + 1)
	if length < 10 && w.IntN(50) != 0 {
		length += 10 + w.IntN(addr.BitLen()-20) // short ones take their time, and hide all else
	}
	if !v6 && w.IntN(16) == 0 {
		return netip.PrefixFrom(netip.AddrFrom16(addr.As16()), 96+length)
	}
	return netip.PrefixFrom(addr, length)
}

func (w *world) ban(v6 bool) Ban {
	ban := Ban{Prefix: w.prefix(v6), List: uint16(w.IntN(4)), Monitor: w.IntN(3) == 0, Expires: bpf.Forever}
	switch w.IntN(4) {
	case 0:
		ban.Expires = w.now + 3600e9 + uint64(w.IntN(3))
	case 1:
		ban.Expires = w.now - 1e9
	}
	return ban
}

// near returns an address in a prefix, or next to it.
func (w *world) near(p netip.Prefix) netip.Addr {
	p = plain(p)
	first := p.Addr()
	last := lastOf(p)
	switch w.IntN(5) {
	case 0:
		return first
	case 1:
		return last
	case 2:
		if a := first.Prev(); a.IsValid() {
			return a
		}
	case 3:
		if a := last.Next(); a.IsValid() {
			return a
		}
	}
	return first
}

func lastOf(p netip.Prefix) netip.Addr {
	a := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(a)*8; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	addr, _ := netip.AddrFromSlice(a)
	return addr
}

// step changes table and model alike, and returns a prefix that it touched.
func (w *world) step(t *testing.T, b *Bans, m model, v6 bool) netip.Prefix {
	t.Helper()
	keys := slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare)
	if n := w.IntN(10); len(keys) > 0 && (n < 4 || len(m) > 200 && n < 6) {
		p := keys[w.IntN(len(keys))]
		if !b.Delete(p) {
			t.Fatalf("delete %s: was not there", p)
		}
		delete(m, p)
		return p
	}
	ban := w.ban(v6)
	if len(keys) > 0 && w.IntN(4) == 0 {
		ban.Prefix = keys[w.IntN(len(keys))]
	}
	if err := b.Put(ban); err != nil {
		t.Fatal(err)
	}
	m.put(ban)
	return ban.Prefix
}

// verify compares the whole table with the model, and with itself.
func verify(t *testing.T, b *Bans, m model) {
	t.Helper()
	got := make(model)
	for ban := range b.All() {
		if _, ok := got[ban.Prefix]; ok {
			t.Fatalf("All told of %s twice", ban.Prefix)
		}
		got[ban.Prefix] = ban
	}
	if !maps.Equal(got, m) {
		for p, ban := range m {
			if got[p] != ban {
				t.Errorf("%s: All told %+v, want %+v", p, got[p], ban)
			}
		}
		t.Fatalf("All told of %d bans, want %d", len(got), len(m))
	}
	want4, want6 := 0, 0
	for p, want := range m {
		if p.Addr().Is4() {
			want4++
		} else {
			want6++
		}
		if ban, ok := b.Get(p); !ok || ban != want {
			t.Fatalf("get %s: got %+v %v, want %+v", p, ban, ok, want)
		}
	}
	if n4, n6 := b.Len(); n4 != want4 || n6 != want6 {
		t.Fatalf("len: got %d and %d, want %d and %d", n4, n6, want4, want6)
	}
	whole(t, b)
}

// whole fails if what is counted in Go differs from what the mapped tables say, or if they hold
// anything that a survey would repair.
func whole(t *testing.T, b *Bans) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	was4, was6 := snapshot4(&b.v4), snapshot6(&b.v6)
	if n := b.v4.survey(); n != 0 {
		t.Fatalf("the IPv4 table needed %d repairs", n)
	}
	if n := b.v6.survey(); n != 0 {
		t.Fatalf("the IPv6 table needed %d repairs", n)
	}
	if now := snapshot4(&b.v4); now != was4 {
		t.Fatalf("counted for IPv4:\n%s\nand there is:\n%s", was4, now)
	}
	if now := snapshot6(&b.v6); now != was6 {
		t.Fatalf("counted for IPv6:\n%s\nand there is:\n%s", was6, now)
	}
}

func snapshot4(b *ban4) string {
	return fmt.Sprint(b.alone, b.slots, b.lengths, b.besideOf, len(b.beside), spilled(b.spill), counted(&b.count32), counted(&b.count28))
}

func snapshot6(b *ban6) string {
	return fmt.Sprint(b.alone, b.slots, b.tier, led(&b.fit), spilled(b.spill))
}

func led(f *fit6) (list []string) {
	for i, cell := range f.cells {
		if cell != (bpf.Ban6Lengths{}) {
			list = append(list, fmt.Sprintf("%d:%x:%x", i, cell.Low, cell.High))
		}
	}
	for i, word := range f.wide {
		if word != 0 {
			list = append(list, fmt.Sprintf("wide %d:%x", i, word))
		}
	}
	return append(list, fmt.Sprint(f.more))
}

func spilled(spill []uint8) (list []string) {
	for i, n := range spill {
		if n != 0 {
			list = append(list, fmt.Sprintf("%d:%d", i, n))
		}
	}
	return list
}

func counted(n *nibbles) (list []string) {
	for i, word := range n.cells {
		if word != 0 {
			list = append(list, fmt.Sprintf("%d:%x", i, word))
		}
	}
	return append(list, fmt.Sprint(n.many))
}
