package maps

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/levee-xdp/levee/bpf"
)

// TestLookupAgainstModel changes the table at random and asks the Go twin of the program's reader,
// which reads the mapped tables as the program does, about millions of addresses.
func TestLookupAgainstModel(t *testing.T) {
	k := load(t, onlyBans())
	r := seeded(t)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			for range 4 * long() {
				w, m := newWorld(r), make(model)
				for i := range 1500 {
					p := w.step(t, k.Bans, m, v6)
					for range 40 {
						ask(t, k.Bans, m, w.addr(v6), w.now)
						ask(t, k.Bans, m, w.near(p), w.now)
					}
					if i%100 == 0 {
						verify(t, k.Bans, m)
					}
				}
				empty(t, k.Bans, m)
			}
		})
	}
}

func ask(t *testing.T, b *Bans, m model, addr netip.Addr, now uint64) {
	t.Helper()
	got, ok := b.Lookup(addr)
	if err := m.ask(addr, now).check(addr, got, ok); err != nil {
		t.Fatal(err)
	}
}

// empty deletes everything, and checks that nothing is left in the maps.
func empty(t *testing.T, b *Bans, m model) {
	t.Helper()
	for _, p := range slices.SortedFunc(maps.Keys(m), netip.Prefix.Compare) {
		if !b.Delete(p) {
			t.Fatalf("delete %s: was not there", p)
		}
		delete(m, p)
	}
	verify(t, b, m)
	if !blank(b.v4.bits) || !blank(b.v4.classes) || !blank(b.v6.wide) || *b.v6.tiers != 0 {
		t.Fatal("bits are left in an empty table")
	}
	for _, e := range slices.Concat(b.v4.table, b.v4.wide) {
		if e.Word != 0 {
			t.Fatalf("word %#x is left in an empty table", e.Word)
		}
	}
	for _, e := range b.v6.table {
		if e.Word != 0 {
			t.Fatalf("word %#x is left in an empty table", e.Word)
		}
	}
	for _, cell := range b.v6.filter {
		if cell.Low|cell.High != 0 {
			t.Fatal("bits are left in an empty filter")
		}
	}
}

func blank(words []uint64) bool {
	return !slices.ContainsFunc(words, func(w uint64) bool { return w != 0 })
}

// TestProgramAgainstModel runs the program itself: verdict, reason and list of every packet.
func TestProgramAgainstModel(t *testing.T) {
	k := load(t, onlyBans())
	r := seeded(t)
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			for range long() {
				w, m := newWorld(r), make(model)
				for range 1500 {
					p := w.step(t, k.Bans, m, v6)
					want := tally{}
					before := k.tally()
					for range 16 {
						want.add(t, k, m, w.addr(v6), w.now)
						want.add(t, k, m, w.near(p), w.now)
					}
					if got := k.tally().since(before); got != want {
						t.Fatalf("counted %+v, want %+v", got, want)
					}
				}
				empty(t, k.Bans, m)
			}
		})
	}
}

// tally is what the program counts of bans.
type tally struct {
	clean, banned, monitored   uint64
	bannedList, monitoredLists [4]uint64
}

func (k *kernel) tally() (n tally) {
	n.clean, n.banned, n.monitored = k.count(bpf.ReasonClean, false), k.count(bpf.ReasonBanned, false), k.count(bpf.ReasonBanned, true)
	lists, err := k.Counters.Lists()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, l := range lists {
		if l.Monitored {
			n.monitoredLists[l.List] = l.Packets
		} else {
			n.bannedList[l.List] = l.Packets
		}
	}
	return n
}

func (n tally) since(before tally) tally {
	n.clean -= before.clean
	n.banned -= before.banned
	n.monitored -= before.monitored
	for i := range n.bannedList {
		n.bannedList[i] -= before.bannedList[i]
		n.monitoredLists[i] -= before.monitoredLists[i]
	}
	return n
}

// add runs a packet and adds what it must have counted. The list is that of the Go reader, whose
// answer is checked against the model.
func (n *tally) add(t *testing.T, k *kernel, m model, addr netip.Addr, now uint64) {
	t.Helper()
	want := uint32(xdpPass)
	ban, ok := k.Bans.Lookup(addr)
	if err := m.ask(addr, now).check(addr, ban, ok); err != nil {
		t.Fatal(err)
	}
	switch {
	case !ok:
		n.clean++
	case ban.Monitor:
		n.monitored++
		n.monitoredLists[ban.List]++
	default:
		n.banned++
		n.bannedList[ban.List]++
		want = xdpDrop
	}
	if got := k.run(frame(addr), 1); got != want {
		t.Fatalf("%s: verdict %d, want %d (%+v)", addr, got, want, ban)
	}
}

var _ = rand.New
