package bpf

import "fmt"

// Reason says why a packet's way ended where it did. It is one enum from the program's verdict to
// the metric's label to the words of the command line; numbers are never reused.
type Reason = LeveeReason

// The reasons. Those below ReasonFirstDrop pass.
const (
	ReasonContinue       = LeveeReasonREASON_CONTINUE
	ReasonClean          = LeveeReasonREASON_CLEAN
	ReasonNonIP          = LeveeReasonREASON_NON_IP
	ReasonPanic          = LeveeReasonREASON_PANIC
	ReasonAllowed        = LeveeReasonREASON_ALLOWED
	ReasonExempt         = LeveeReasonREASON_EXEMPT
	ReasonControl        = LeveeReasonREASON_CONTROL
	ReasonUntracked      = LeveeReasonREASON_UNTRACKED
	ReasonContended      = LeveeReasonREASON_CONTENDED
	ReasonFirstDrop      = LeveeReasonREASON_FIRST_DROP
	ReasonMalformedL3    = LeveeReasonREASON_MALFORMED_L3
	ReasonBanned         = LeveeReasonREASON_BANNED
	ReasonMartian        = LeveeReasonREASON_MARTIAN
	ReasonMalformedL4    = LeveeReasonREASON_MALFORMED_L4
	ReasonControlCap     = LeveeReasonREASON_CONTROL_CAP
	ReasonPenalty        = LeveeReasonREASON_PENALTY
	ReasonLimitPackets   = LeveeReasonREASON_LIMIT_PACKETS
	ReasonLimitBits      = LeveeReasonREASON_LIMIT_BITS
	ReasonLimitSYN       = LeveeReasonREASON_LIMIT_SYN
	ReasonLimitUDP       = LeveeReasonREASON_LIMIT_UDP
	ReasonLimitICMP      = LeveeReasonREASON_LIMIT_ICMP
	ReasonLimitFragments = LeveeReasonREASON_LIMIT_FRAGMENTS
	ReasonLimitAggregate = LeveeReasonREASON_LIMIT_AGGREGATE
	ReasonMax            = LeveeReasonREASON_MAX
)

var reasonWords = [...]struct {
	reason       Reason
	label, words string
}{
	{ReasonClean, "clean", "nothing to say against it"},
	{ReasonNonIP, "non_ip", "neither IPv4 nor IPv6, not judged"},
	{ReasonPanic, "panic", "the panic switch is on, everything passes"},
	{ReasonAllowed, "allowed", "banned, but an allow entry overrules the ban"},
	{ReasonExempt, "exempt", "over a limit, but its allow entry is exempt from limits"},
	{ReasonControl, "control", "ARP, neighbour discovery or an ICMP error"},
	{ReasonUntracked, "untracked", "no room to track its source, passed under its prefix's aggregate"},
	{ReasonContended, "contended", "its source's state was being changed by other CPUs, passed"},
	{ReasonMalformedL3, "malformed_l3", "an IP header that the kernel would discard"},
	{ReasonBanned, "banned", "its source is banned"},
	{ReasonMartian, "martian", "a source address that cannot be on a wire"},
	{ReasonMalformedL4, "malformed_l4", "a transport header that the kernel would discard"},
	{ReasonControlCap, "control_cap", "ARP, neighbour discovery or ICMP errors over their cap"},
	{ReasonPenalty, "penalty", "its source broke a limit and serves its penalty"},
	{ReasonLimitPackets, "limit_packets", "its source sends more packets than its limit"},
	{ReasonLimitBits, "limit_bits", "its source sends more bits than its limit"},
	{ReasonLimitSYN, "limit_syn", "its source opens more TCP connections than its limit"},
	{ReasonLimitUDP, "limit_udp", "its source sends more UDP than its limit"},
	{ReasonLimitICMP, "limit_icmp", "its source sends more ICMP than its limit"},
	{ReasonLimitFragments, "limit_fragments", "its source sends more fragments than its limit"},
	{ReasonLimitAggregate, "limit_aggregate", "its prefix together sends more than the limit's aggregate"},
}

// Reasons returns every reason that is counted, in the order of the enum.
func Reasons() []Reason {
	all := make([]Reason, len(reasonWords))
	for i, w := range reasonWords {
		all[i] = w.reason
	}
	return all
}

// String returns the reason's label, as metrics and JSON carry it.
func (r LeveeReason) String() string {
	for _, w := range reasonWords {
		if w.reason == r {
			return w.label
		}
	}
	return fmt.Sprintf("reason_%d", uint32(r))
}

// Words says in plain words what the reason means for a packet.
func (r LeveeReason) Words() string {
	for _, w := range reasonWords {
		if w.reason == r {
			return w.words
		}
	}
	return "unknown to this version"
}

// Drops tells whether a packet with this reason is dropped, where nothing only monitors.
func (r LeveeReason) Drops() bool { return r >= ReasonFirstDrop }
