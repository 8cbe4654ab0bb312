package bpf

import "fmt"

// Short names for the types that bpf2go generates. bpf/types.h says what each field means, in which
// unit, and who writes it.
type (
	// Allow is the value of an allow entry.
	Allow = LeveeAllow
	// AggregateBucket holds the arrival times of four prefixes.
	AggregateBucket = LeveeAggregateBucket
	// Ban4Bucket is a cache line of four IPv4 bans.
	Ban4Bucket = LeveeBan4Bucket
	// Ban4Entry is an IPv4 ban.
	Ban4Entry = LeveeBan4Entry
	// Ban6Bucket is a cache line of two IPv6 bans.
	Ban6Bucket = LeveeBan6Bucket
	// Ban6Entry is an IPv6 ban.
	Ban6Entry = LeveeBan6Entry
	// Ban6Lengths is a cell of the filter in front of the IPv6 bans.
	Ban6Lengths = LeveeBan6Lengths
	// Ban6Far is a /48 that no ban was near when a CPU asked the filter.
	Ban6Far = LeveeBan6Far
	// Control holds the run-time switches.
	Control = LeveeControl
	// Counter counts packets and bytes, per CPU.
	Counter = LeveeCounter
	// Event is a sampled packet as the ring buffer carries it.
	Event = LeveeEvent
	// Interface names the owner of a slot of the counters.
	Interface = LeveeInterface
	// Limit is a limit's thresholds, penalty and grouping.
	Limit = LeveeLimit
	// Meta says what a pinned set is.
	Meta = LeveeMeta
	// PrefixKey is the key of the tries.
	PrefixKey = LeveePrefixKey
	// Rate is a rate as GCRA knows it.
	Rate = LeveeRate
	// SourceCounts is what is only counted of a source.
	SourceCounts = LeveeSourceCounts
	// SourceState is a source's key and its arrival times.
	SourceState = LeveeSourceState
	// SourceTags is a cache line of eight sources' tags.
	SourceTags = LeveeSourceTags
	// Tabs is what a CPU has served sources and not put to their entries yet.
	Tabs = LeveeTabs
)

// Family is a packet's network protocol, as the counters know it.
type Family = LeveeFamily

// The families.
const (
	FamilyOther = LeveeFamilyFAMILY_OTHER
	FamilyIPv4  = LeveeFamilyFAMILY_IPV4
	FamilyIPv6  = LeveeFamilyFAMILY_IPV6
	FamilyMax   = LeveeFamilyFAMILY_MAX
)

// String returns the family's metric label.
func (f LeveeFamily) String() string {
	switch f {
	case FamilyOther:
		return "other"
	case FamilyIPv4:
		return "ipv4"
	case FamilyIPv6:
		return "ipv6"
	}
	return fmt.Sprintf("family_%d", uint32(f))
}

// Threshold is one measure of a limit; its number indexes the limit's counters.
type Threshold = LeveeThreshold

// The thresholds, and after them the counters that a limit has beside theirs.
const (
	ThresholdPackets   = LeveeThresholdTHRESHOLD_PACKETS
	ThresholdBits      = LeveeThresholdTHRESHOLD_BITS
	ThresholdSYN       = LeveeThresholdTHRESHOLD_SYN
	ThresholdUDP       = LeveeThresholdTHRESHOLD_UDP
	ThresholdICMP      = LeveeThresholdTHRESHOLD_ICMP
	ThresholdFragments = LeveeThresholdTHRESHOLD_FRAGMENTS
	ThresholdMax       = LeveeThresholdTHRESHOLD_MAX
	CountAggregate     = LeveeThresholdCOUNT_AGGREGATE
	CountPenalty       = LeveeThresholdCOUNT_PENALTY
	LimitCounters      = LeveeThresholdLIMIT_COUNTERS
)

// String returns the threshold's name in configuration, commands and metrics.
func (t LeveeThreshold) String() string {
	switch t {
	case ThresholdPackets:
		return "packets"
	case ThresholdBits:
		return "bits"
	case ThresholdSYN:
		return "syn"
	case ThresholdUDP:
		return "udp"
	case ThresholdICMP:
		return "icmp"
	case ThresholdFragments:
		return "fragments"
	case CountAggregate:
		return "aggregate"
	case CountPenalty:
		return "penalty"
	}
	return fmt.Sprintf("threshold_%d", uint32(t))
}

// Stat is what the program counts beside the reasons.
type Stat = LeveeStat

// The stats; types.h says what each counts.
const (
	StatUntracked        = LeveeStatSTAT_UNTRACKED
	StatContended        = LeveeStatSTAT_CONTENDED
	StatTracked          = LeveeStatSTAT_TRACKED
	StatEvicted          = LeveeStatSTAT_EVICTED
	StatEvents           = LeveeStatSTAT_EVENTS
	StatEventsOverBudget = LeveeStatSTAT_EVENTS_OVER_BUDGET
	StatEventsLost       = LeveeStatSTAT_EVENTS_LOST
	StatAggregateFull    = LeveeStatSTAT_AGGREGATE_FULL
	StatMax              = LeveeStatSTAT_MAX
)

// Sizes and shapes that both sides share; types.h explains each.
const (
	Schema = 3

	MaxInterfaces = uint32(LeveeSizesMAX_INTERFACES)
	MaxLimits     = uint32(LeveeSizesMAX_LIMITS)
	MaxLists      = uint32(LeveeSizesMAX_LISTS)
	EventBytes    = uint32(LeveeSizesEVENT_BYTES)

	BanLive        = uint64(LeveeBanFlagsBAN_LIVE)
	BanMonitor     = uint64(LeveeBanFlagsBAN_MONITOR)
	BanAll         = uint64(LeveeBanFlagsBAN_ALL)
	BanTombstone   = uint64(LeveeBanFlagsBAN_TOMBSTONE)
	BanClassShift  = uint(LeveeBanFlagsBAN_CLASS_SHIFT)
	BanLengthShift = uint(LeveeBanWordBAN_LENGTH_SHIFT)
	BanListShift   = uint(LeveeBanWordBAN_LIST_SHIFT)
	BanKeyShift    = uint(LeveeBanWordBAN_KEY_SHIFT)
	Ban4Slots      = int(LeveeBanGeometryBAN4SLOTS)
	Ban4Probes     = int(LeveeBanGeometryBAN4PROBES)
	Ban6Slots      = int(LeveeBanGeometryBAN6SLOTS)
	Ban6Probes     = int(LeveeBanGeometryBAN6PROBES)

	Ban6Tier48   = uint32(LeveeBan6TierBAN6TIER_48)
	Ban6Tier32   = uint32(LeveeBan6TierBAN6TIER_32)
	Ban6TierWide = uint32(LeveeBan6TierBAN6TIER_WIDE)

	AllowNoLimit = uint32(LeveeAllowFlagsALLOW_NO_LIMIT)
	AllowDerived = uint32(LeveeAllowFlagsALLOW_DERIVED)

	LimitEnabled   = uint8(LeveeLimitFlagsLIMIT_ENABLED)
	LimitMonitor   = uint8(LeveeLimitFlagsLIMIT_MONITOR)
	LimitAggregate = uint8(LeveeLimitFlagsLIMIT_AGGREGATE)
	LimitCoarse    = uint8(LeveeLimitFlagsLIMIT_COARSE)
	LimitDerived   = uint8(LeveeLimitFlagsLIMIT_DERIVED)
	CostShift      = uint(LeveeRateUnitCOST_SHIFT)

	SourceWays     = int(LeveeSourceTagSOURCE_WAYS)
	SeenShift      = uint(LeveeSourceTagSEEN_SHIFT)
	TagLive        = uint64(LeveeSourceTagTAG_LIVE)
	TagFamilyShift = uint(LeveeSourceTagTAG_FAMILY_SHIFT)
	TagSeenShift   = uint(LeveeSourceTagTAG_SEEN_SHIFT)
	TagSeenMask    = uint64(1)<<38 - 1
	TagLimitShift  = uint(LeveeSourceTagTAG_LIMIT_SHIFT)
	TagPrintShift  = uint(LeveeSourceTagTAG_PRINT_SHIFT)

	// TATPenalty marks a source's packets' TAT as the time when its penalty ends.
	TATPenalty = uint64(1) << 63

	// SeenLag is by which part of the idle time a source's seen may lag behind: a quarter.
	SeenLag = int(LeveeSourceTagSEEN_LAG)

	CreditMax   = int(LeveeTabGeometryCREDIT_MAX)
	CreditBytes = int(LeveeTabGeometryCREDIT_BYTES)

	// Forever is the expiry of what does not expire, in ns of CLOCK_MONOTONIC.
	Forever = ^uint64(0)
)
