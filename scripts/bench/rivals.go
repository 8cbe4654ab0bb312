package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// rivals are what Levee is measured against: the bare program, and the common way.
type rivals struct {
	bare   *ebpf.Program
	field  map[parts]*ebpf.Program
	maps   *fieldMaps
	closed []interface{ Close() error }
}

// parts says which duties the common way's program has.
type parts struct{ bans, limits bool }

// newRivals loads them, with a source table of this many entries.
func newRivals(bans4, bans6 []netip.Prefix, sources int) (*rivals, error) {
	r := &rivals{field: make(map[parts]*ebpf.Program)}
	spec, err := loadField()
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"sources4", "sources6"} {
		spec.Maps[name].MaxEntries = uint32(sources)
	}
	spec.Maps["bans4"].MaxEntries = uint32(max(len(bans4), 1))
	spec.Maps["bans6"].MaxEntries = uint32(max(len(bans6), 1))
	r.maps = new(fieldMaps)
	if err := spec.LoadAndAssign(r.maps, nil); err != nil {
		return nil, fmt.Errorf("create the common way's maps: %w", err)
	}
	replace := make(map[string]*ebpf.Map)
	for name, m := range map[string]*ebpf.Map{
		"bans4": r.maps.Bans4, "bans6": r.maps.Bans6, "counts": r.maps.Counts,
		"sources4": r.maps.Sources4, "sources6": r.maps.Sources6,
	} {
		replace[name] = m
		r.closed = append(r.closed, m)
	}
	for _, p := range []parts{{true, true}, {true, false}, {false, true}, {false, false}} {
		spec := spec.Copy()
		err := errors.Join(
			spec.Variables["cfg_packets"].Set(uint64(clearPackets)),
			spec.Variables["cfg_bytes"].Set(uint64(clearBits/8)),
			spec.Variables["cfg_bans"].Set(p.bans),
			spec.Variables["cfg_limits"].Set(p.limits),
		)
		if err != nil {
			return nil, err
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
		if err != nil {
			return nil, fmt.Errorf("load the common way: %w", err)
		}
		r.field[p] = coll.DetachProgram("field")
		r.bare = coll.DetachProgram("bare")
		r.closed = append(r.closed, r.field[p], r.bare)
		coll.Close()
	}
	return r, errors.Join(fillTrie(r.maps.Bans4, bans4), fillTrie(r.maps.Bans6, bans6))
}

func (r *rivals) close() {
	for _, c := range r.closed {
		_ = c.Close()
	}
}

// fillTrie adds prefixes, in batches of a size at which the kernel's allocator keeps up.
func fillTrie(m *ebpf.Map, prefixes []netip.Prefix) error {
	const batch = 4096
	for len(prefixes) > 0 {
		n := min(batch, len(prefixes))
		values := make([]uint64, n)
		for i := range values {
			values[i] = bpf.Forever
		}
		var err error
		if prefixes[0].Addr().Is4() {
			keys := make([]fieldKey4, n)
			for i, p := range prefixes[:n] {
				a := p.Addr().As4()
				keys[i].Length, keys[i].Addr = uint32(p.Bits()), binary.NativeEndian.Uint32(a[:])
			}
			err = addAll(m, keys, values)
		} else {
			keys := make([]fieldKey6, n)
			for i, p := range prefixes[:n] {
				keys[i].Length, keys[i].Addr = uint32(p.Bits()), p.Addr().As16()
			}
			err = addAll(m, keys, values)
		}
		if err != nil {
			return fmt.Errorf("fill %s: %w", m, err)
		}
		prefixes = prefixes[n:]
	}
	return nil
}

// addAll is a batch, and one by one where the batch stopped: a trie that has just been made may run
// out of what it allocates from in advance.
func addAll[K any](m *ebpf.Map, keys []K, values []uint64) error {
	n, err := m.BatchUpdate(keys, values, nil)
	if err == nil {
		return nil
	}
	for i := n; i < len(keys); i++ {
		if err := m.Put(keys[i], values[i]); err != nil {
			return err
		}
	}
	return nil
}
