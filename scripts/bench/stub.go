package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Until package maps can be used: writes bans as the program reads them, all at once and into an
// empty table.

func hash64(secret [2]uint64, x uint64) uint64 {
	x ^= secret[0]
	x *= 0xFF51AFD7ED558CCD
	x ^= x >> 32
	x ^= secret[1]
	x *= 0xC4CEB9FE1A85EC53
	return x ^ x>>29
}

func fillBans(m map[string]*ebpf.Map, secret [2]uint64, prefixes []netip.Prefix) error {
	bits := make([]uint64, 1<<18)
	classes := make([]uint64, 1<<20)
	wide := make([]bpf.Ban4Entry, 1<<16)
	table4 := make([]bpf.Ban4Bucket, m[bpf.LeveeMapBan4Table].MaxEntries())
	table6 := make([]bpf.Ban6Bucket, m[bpf.LeveeMapBan6Table].MaxEntries())
	filter := make([]bpf.Ban6Lengths, m[bpf.LeveeMapBan6Filter].MaxEntries())

	word := func(key uint64, length int) uint64 {
		return key<<bpf.BanKeyShift | 1<<bpf.BanListShift | uint64(length)<<bpf.BanLengthShift | bpf.BanLive
	}
	for _, p := range prefixes {
		n := p.Bits()
		if p.Addr().Is4() {
			a4 := p.Addr().As4()
			addr := uint64(binary.BigEndian.Uint32(a4[:]))
			for i := addr >> 8; i <= (addr+1<<(32-n)-1)>>8; i++ {
				bits[i>>6] |= 1 << (i & 63)
				class := (32 - n) / 4
				classes[i>>4] |= 1 << (min(class, 3) + int(i&15)*4)
			}
			if n <= 16 {
				for i := range uint64(1) << (16 - n) {
					wide[addr>>16+i] = bpf.Ban4Entry{Word: word(0, n), Expires: bpf.Forever}
				}
				continue
			}
			class := uint64(32-n) / 4
			for i := range uint64(1) << (32 - class*4 - uint64(n)) {
				key := addr + i<<(class*4)
				w := word(key, n) | class<<bpf.BanClassShift
				home := hash64(secret, class<<32|key)
				if err := place4(table4, home, w); err != nil {
					return err
				}
			}
			continue
		}
		a := p.Addr().As16()
		hi, lo := binary.BigEndian.Uint64(a[:]), binary.BigEndian.Uint64(a[8:])
		shift := uint64(16)
		if n < 48 {
			shift = 32
		}
		cell := &filter[hash64(secret, hi>>shift)&uint64(len(filter)-1)]
		switch {
		case n == 128:
			cell.Low |= 1
		case n >= 64:
			cell.High |= 1 << (n - 64)
		default:
			cell.Low |= 1 << n
		}
		hash := hash64(secret, hash64(secret, hash64(secret, hi)+lo)+uint64(n))
		if err := place6(table6, hash>>32, bpf.Ban6Entry{Word: word(hash, n), Hi: hi, Lo: lo, Expires: bpf.Forever}); err != nil {
			return err
		}
	}
	for _, err := range []error{
		put(m[bpf.LeveeMapBan4Bits], bits), put(m[bpf.LeveeMapBan4Classes], classes),
		put(m[bpf.LeveeMapBan4Wide], wide), put(m[bpf.LeveeMapBan4Table], table4),
		put(m[bpf.LeveeMapBan6Table], table6), put(m[bpf.LeveeMapBan6Filter], filter),
	} {
		if err != nil {
			return err
		}
	}
	return nil
}

func place4(table []bpf.Ban4Bucket, home, word uint64) error {
	for i := range uint64(bpf.Ban4Probes) {
		b := &table[(home+i)&uint64(len(table)-1)]
		for j := range b.Entry {
			if b.Entry[j].Word == 0 || b.Entry[j].Word == word {
				b.Entry[j] = bpf.Ban4Entry{Word: word, Expires: bpf.Forever}
				return nil
			}
		}
	}
	return fmt.Errorf("ban4: full")
}

func place6(table []bpf.Ban6Bucket, home uint64, entry bpf.Ban6Entry) error {
	for i := range uint64(bpf.Ban6Probes) {
		b := &table[(home+i)&uint64(len(table)-1)]
		for j := range b.Entry {
			if b.Entry[j].Word == 0 {
				b.Entry[j] = entry
				return nil
			}
		}
	}
	return fmt.Errorf("ban6: full")
}

func put[T any](m *ebpf.Map, all []T) error {
	const batch = 1 << 16
	keys := make([]uint32, 0, batch)
	for start := 0; start < len(all); start += batch {
		part := all[start:min(start+batch, len(all))]
		keys = keys[:0]
		for i := range part {
			keys = append(keys, uint32(start+i))
		}
		if _, err := m.BatchUpdate(keys, part, nil); err != nil {
			return fmt.Errorf("fill %s: %w", m, err)
		}
	}
	return nil
}
