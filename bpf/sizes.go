package bpf

import (
	"fmt"
	"math/bits"
	"runtime"

	"github.com/cilium/ebpf"
)

// Sizes says how much the tables hold, in entries. The kernel's memory for them is fixed when they
// are created: 64 bytes an IPv4 ban, about 90 an IPv6 ban, 104 a source.
type Sizes struct {
	Ban4Entries int // IPv4 prefixes; one that is not /32, /28, /24, /20 or up to /16 may count eightfold
	Ban6Entries int // IPv6 prefixes
	Sources     int // tracked sources, of both families together
	Allows      int // allow entries, of both families together
}

// DefaultSizes is what fits a host that takes large feeds: a million IPv4 bans, 100,000 IPv6 bans,
// half a million sources.
func DefaultSizes() Sizes {
	return Sizes{Ban4Entries: 1 << 20, Ban6Entries: 100_000, Sources: 1 << 19, Allows: 1 << 14}
}

// Validate names the first size that is out of its range.
func (s Sizes) Validate() error {
	for _, f := range []struct {
		name            string
		value, min, max int
	}{
		{"ipv4_bans", s.Ban4Entries, 1 << 10, 1 << 24},
		{"ipv6_bans", s.Ban6Entries, 1 << 10, 1 << 22},
		{"sources", s.Sources, 1 << 10, 1 << 24},
		{"allows", s.Allows, 1 << 4, 1 << 20},
	} {
		if f.value < f.min || f.value > f.max {
			return fmt.Errorf("size %s: %d is not within %d to %d", f.name, f.value, f.min, f.max)
		}
	}
	return nil
}

// Buckets of each hashed table. IPv4 bans get four slots an entry wanted, so that prefixes which
// expand to several fit; IPv6 bans two; sources one.
func (s Sizes) ban4Buckets() uint32   { return ceilPow2(s.Ban4Entries) }
func (s Sizes) ban6Buckets() uint32   { return ceilPow2(s.Ban6Entries) }
func (s Sizes) filterCells() uint32   { return ceilPow2(s.Ban6Entries) }
func (s Sizes) sourceBuckets() uint32 { return ceilPow2(s.Sources) / uint32(SourceWays) }

func ceilPow2(n int) uint32 { return 1 << bits.Len32(uint32(n-1)) }

// Apply sets the sizes of a spec's maps, and the constants by which its program knows them.
func (s Sizes) Apply(spec *ebpf.CollectionSpec) error {
	if err := s.Validate(); err != nil {
		return err
	}
	for name, entries := range map[string]uint32{
		LeveeMapBan4Table:    s.ban4Buckets(),
		LeveeMapBan6Table:    s.ban6Buckets(),
		LeveeMapBan6Filter:   s.filterCells(),
		LeveeMapSourceTags:   s.sourceBuckets(),
		LeveeMapSourceStates: s.sourceBuckets() * uint32(SourceWays),
		LeveeMapSourceCounts: s.sourceBuckets() * uint32(SourceWays),
		LeveeMapAllows:       uint32(s.Allows),
	} {
		m := spec.Maps[name]
		if m == nil {
			return fmt.Errorf("size map %s: the object has no such map", name)
		}
		m.MaxEntries = entries
	}
	return setVariables(spec, map[string]any{
		LeveeVarCfgBan4Mask:       s.ban4Buckets() - 1,
		LeveeVarCfgBan6Mask:       s.ban6Buckets() - 1,
		LeveeVarCfgBan6FilterMask: s.filterCells() - 1,
		LeveeVarCfgSourceMask:     s.sourceBuckets() - 1,
		LeveeVarCfgAggregateMask:  spec.Maps[LeveeMapAggregates].MaxEntries - 1,
	})
}

// Features says which stages the program has. One that is off is no code at all.
type Features struct {
	Bans     bool // the ban list
	Sanity   bool // dropping what the kernel would discard
	Martians bool // … and sources that cannot be on a wire; off on loopback
	Limits   bool // per-source limits
	Events   bool // sampled drops
	Frags    bool // multi-buffer packets; needs kernel 5.18, set by the loader where it is there
}

// DefaultFeatures has every stage, and leaves Frags to the loader.
func DefaultFeatures() Features {
	return Features{Bans: true, Sanity: true, Martians: true, Limits: true, Events: true}
}

// Apply sets the constants of a spec by which its program knows the features.
func (f Features) Apply(spec *ebpf.CollectionSpec) error {
	return setVariables(spec, map[string]any{
		LeveeVarCfgBans:     f.Bans,
		LeveeVarCfgSanity:   f.Sanity,
		LeveeVarCfgMartians: f.Martians,
		LeveeVarCfgLimits:   f.Limits,
		LeveeVarCfgEvents:   f.Events,
		LeveeVarCfgFrags:    f.Frags,
	})
}

// Specialise sets what differs per pinned set, per interface and per host: the hashes' key, which is the
// set's Meta.Secret, the interface's slot in the counters, and whether the CPU keeps loads in order.
func Specialise(spec *ebpf.CollectionSpec, secret [2]uint64, slot uint32) error {
	return setVariables(spec, map[string]any{
		LeveeVarCfgSecret:        secret,
		LeveeVarCfgInterfaceSlot: slot,
		LeveeVarCfgOrderedLoads:  runtime.GOARCH == "amd64",
	})
}

func setVariables(spec *ebpf.CollectionSpec, values map[string]any) error {
	for name, value := range values {
		v := spec.Variables[name]
		if v == nil {
			return fmt.Errorf("set %s: the object has no such constant", name)
		}
		if err := v.Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
