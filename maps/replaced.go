package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// Held is what stands in a set's maps of what was decided.
type Held struct {
	Bans   []Ban
	Allows []Allow
	Limits map[uint8]Limit
}

// ReadHeld returns what stands in a set's maps, of whatever size: of a set that is about to be replaced.
// It writes nothing. Of the bans, see ReadBans. Returns an error if the maps are not laid out as this
// version's.
func ReadHeld(m map[string]*ebpf.Map) (h Held, err error) {
	if h.Bans, err = ReadBans(m); err != nil {
		return h, err
	}
	t := &Tables{}
	defer func() { err = errors.Join(err, t.Close()) }()
	o := opener{maps: m, tables: t}
	allows := openAllows(&o)
	limits := openLimits(&o, &bpf.Control{}) // the switches of that set are left alone
	if o.err != nil {
		return h, fmt.Errorf("read the limits of a set: %w", o.err)
	}
	if err := limits.adopt(); err != nil {
		return h, err
	}
	h.Limits = limits.All()
	h.Allows, err = allows.All()
	return h, err
}

// ReadBans returns the bans that stand in a set's maps, of whatever size: of a set that is about to be
// replaced. It writes nothing. Of what other prefixes hide in all of its slots nothing is known.
// Returns an error if the maps are not laid out as this version's.
func ReadBans(m map[string]*ebpf.Map) (bans []Ban, err error) {
	t := &Tables{}
	o := opener{maps: m, tables: t}
	b := ban4{wide: array[bpf.Ban4Entry](&o, bpf.LeveeMapBan4Wide, false), table: array[bpf.Ban4Entry](&o, bpf.LeveeMapBan4Table, false)}
	table6 := array[bpf.Ban6Entry](&o, bpf.LeveeMapBan6Table, false)
	defer func() {
		if failed := t.Close(); err == nil {
			err = failed
		}
	}()
	if o.err != nil {
		return nil, fmt.Errorf("read the bans of a set: %w", o.err)
	}
	parts := make(map[Ban]bool) // of prefixes that have lost their first slot
	for at := range len(b.table) + len(b.wide) {
		word := b.entry(at).Word
		if !live(word) {
			continue
		}
		p := place{classWide, uint32(at-len(b.table)) << 16, at, true}
		if at < len(b.table) {
			p.class, p.key = class4(word>>bpf.BanClassShift&3), uint32(word>>bpf.BanKeyShift)
		}
		if !sound4(p, word) {
			continue
		}
		v := b.says(at)
		if ban := v.ban(addr4(p.key)); p.first(v.length) {
			bans = append(bans, ban)
		} else {
			parts[ban] = true
		}
	}
	for _, ban := range bans {
		delete(parts, ban)
	}
	for ban := range parts {
		bans = append(bans, ban)
	}
	all := false
	for i := range table6 {
		e := &table6[i]
		k, v := keyOfEntry(e), content6(e.Word, e.Expires)
		if !live(e.Word) || !sound6(k, v) || v.length == 0 && all {
			continue
		}
		all = all || v.length == 0 // its other half says the same
		bans = append(bans, v.ban(k.addr()))
	}
	return bans, nil
}
