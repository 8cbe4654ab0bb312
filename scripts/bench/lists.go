package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	"github.com/gaissmai/bart"
)

// lists is what both the shields and the wrappers are fed with, for one family. The same size gives
// the same lists.
type lists struct {
	v6     bool
	bans   []netip.Prefix
	banned []netip.Addr // an address of a ban each, in no order
	clean  []netip.Addr // addresses of no ban, all different
}

// Shares of IPv6 prefix lengths, in percent.
var lengths6 = []struct{ bits, share int }{
	{32, 5}, {40, 5}, {44, 5}, {48, 20}, {56, 15}, {60, 5}, {64, 30}, {128, 15},
}

// newLists makes so many bans, and as many addresses of each kind as the wrapper's list holds.
//
// Three quarters of the IPv4 bans are /32; a quarter is /24 to /16, each length half as often as
// the one that is a bit longer. What is shorter than /32 has an odd second byte: random sources
// have an even one, and so are not banned. IPv6 bans are 2000::/3 with an odd second byte.
func newLists(v6 bool, bans, addrs int) *lists {
	random := rand.New(rand.NewPCG(uint64(bans), uint64(addrs)))
	l := &lists{v6: v6, bans: newBans(random, v6, bans)}
	table := new(bart.Lite)
	for _, prefix := range l.bans {
		table.Insert(prefix)
	}
	for range addrs {
		l.banned = append(l.banned, within(random, l.bans[random.IntN(len(l.bans))]))
	}
	groups := make(map[netip.Prefix]bool, addrs)
	for len(l.clean) < addrs {
		addr := l.cleanAddr(random)
		group, _ := addr.Prefix(min(addr.BitLen(), 64))
		if groups[group] || table.Contains(addr) {
			continue
		}
		groups[group] = true
		l.clean = append(l.clean, addr)
	}
	return l
}

func newBans(random *rand.Rand, v6 bool, count int) []netip.Prefix {
	bans := make([]netip.Prefix, 0, count)
	seen := make(map[netip.Prefix]bool, count)
	for len(bans) < count {
		prefix := randomBan(random, v6, len(bans))
		if !seen[prefix] {
			seen[prefix] = true
			bans = append(bans, prefix)
		}
	}
	random.Shuffle(count, func(i, j int) { bans[i], bans[j] = bans[j], bans[i] })
	return bans
}

// cleanAddr gives an address that may be a client's. One IPv6 client in eight is a neighbour of a
// banned network: in the same /32 or the same /48.
func (l *lists) cleanAddr(random *rand.Rand) netip.Addr {
	addr := randomAddr(random, l.v6)
	if !l.v6 || random.IntN(8) > 0 {
		return addr
	}
	a, ban := addr.As16(), l.bans[random.IntN(len(l.bans))].Addr().As16()
	copy(a[:4+2*random.IntN(2)], ban[:])
	return netip.AddrFrom16(a)
}

func randomBan(random *rand.Rand, v6 bool, number int) netip.Prefix {
	addr := randomAddr(random, v6)
	if v6 {
		a := addr.As16()
		a[1] |= 1
		share := random.IntN(100)
		for _, l := range lengths6 {
			if share -= l.share; share < 0 {
				return netip.PrefixFrom(netip.AddrFrom16(a), l.bits).Masked()
			}
		}
	}
	if number%4 != 0 {
		return netip.PrefixFrom(addr, 32)
	}
	a := addr.As4()
	a[1] |= 1
	bits := 24
	for bits > 16 && random.IntN(2) == 0 {
		bits--
	}
	return netip.PrefixFrom(netip.AddrFrom4(a), bits).Masked()
}

// randomAddr gives a public unicast address; IPv6 ends in ::1.
func randomAddr(random *rand.Rand, v6 bool) netip.Addr {
	if v6 {
		var a [16]byte
		binary.BigEndian.PutUint64(a[:], random.Uint64())
		a[0] = 0x20 | a[0]&0x1F
		a[15] = 1
		return netip.AddrFrom16(a)
	}
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], random.Uint32())
	for a[0] == 0 || a[0] == 10 || a[0] == 127 || a[0] >= 224 {
		a[0] = byte(random.Uint32())
	}
	return netip.AddrFrom4(a)
}

// within gives an address of a prefix.
func within(random *rand.Rand, prefix netip.Prefix) netip.Addr {
	a := prefix.Addr().AsSlice()
	for bit := prefix.Bits(); bit < len(a)*8; bit++ {
		if random.Uint32()&1 == 1 {
			a[bit/8] |= 1 << (7 - bit%8)
		}
	}
	addr, _ := netip.AddrFromSlice(a)
	return addr
}
