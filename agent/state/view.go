package state

import (
	"net/netip"
	"time"
)

// What the API takes and gives. The server and the client share these types, so they stand here.

// BanRequest asks for bans. Each gets its own answer.
type BanRequest struct {
	Bans    []BanItem `json:"bans" minItems:"1" maxItems:"10000" doc:"The bans that are asked for"`
	Force   bool      `json:"force,omitempty" doc:"Also prefixes wider than /8 (IPv4) or /19 (IPv6), or with protected addresses within them"`
	Confirm Duration  `json:"confirm,omitzero" doc:"Take it back after this time, unless it is confirmed; absent: not" example:"60s"`
}

// BanItem is one ban that is asked for.
type BanItem struct {
	Prefix  string    `json:"prefix" maxLength:"80" doc:"An address or a prefix" example:"203.0.113.7"`
	Origin  Origin    `json:"origin,omitempty" maxLength:"80" doc:"Who speaks; by default api" example:"api:gateway-3"`
	Reason  string    `json:"reason,omitempty" maxLength:"256" example:"credential stuffing"`
	For     string    `json:"for,omitempty" maxLength:"40" doc:"How long; absent, and without expires: until it is taken back" example:"4h"`
	Expires time.Time `json:"expires,omitzero" doc:"Until when, instead of for"`
	Monitor bool      `json:"monitor,omitempty" doc:"Count what would be dropped, and pass it"`
	Via     string    `json:"via,omitempty" maxLength:"80" doc:"The address that the packets came from, where the prefix is of a client that a proxy told of. Refused as a conflict: packets carry the proxy's address" example:"198.51.100.1"`
}

// UnbanRequest takes claims back.
type UnbanRequest struct {
	Prefixes []string `json:"prefixes,omitempty" maxItems:"10000" doc:"Absent: every prefix on which the origin has a claim; the answer then only counts them. It is done in parts, and one such call at a time"`
	Origin   Origin   `json:"origin,omitempty" maxLength:"80" doc:"Whose claims; by default api"`
	All      bool     `json:"all,omitempty" doc:"The claims of all origins"`
}

// BanResult is the answer for one prefix. The claim's fields are those of the claim that was made,
// or taken back.
type BanResult struct {
	Prefix  string    `json:"prefix" doc:"In canonical form, or as it was given if it is none"`
	Status  Status    `json:"status" enum:"added,changed,unchanged,removed,refused"`
	Origin  Origin    `json:"origin,omitempty"`
	Actor   string    `json:"actor,omitempty"`
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created,omitzero"`
	Expires time.Time `json:"expires,omitzero" doc:"Absent: until it is taken back"`
	Monitor bool      `json:"monitor,omitempty"`
	Removed []Claim   `json:"removed,omitempty" doc:"Every claim that was taken back"`
	Others  []Claim   `json:"others,omitempty" doc:"Claims of others that live on the same prefix: while there are any, it stays banned"`
	Notes   []string  `json:"notes,omitempty"`
	Error   *Error    `json:"error,omitempty" doc:"Why it was refused"`
}

// BanResponse answers a batch. What was not refused is on disk and in the kernel.
type BanResponse struct {
	Bans      []BanResult `json:"bans"`
	Done      int         `json:"done"`
	Refused   int         `json:"refused"`
	Protected int         `json:"protected,omitempty" doc:"How many of the refused would have touched a protected address"`
	Trial     *Trial      `json:"trial,omitempty" doc:"Present if it has to be confirmed"`
}

// BanPage is a page of claims, the newest first.
type BanPage struct {
	Bans  []Claim `json:"bans"`
	Total int     `json:"total" doc:"How many there are in all"`
	Next  string  `json:"next,omitempty" doc:"The cursor of the next page; absent on the last"`
}

// AllowRequest asks for allow entries.
type AllowRequest struct {
	Allow   []AllowItem `json:"allow" minItems:"1" maxItems:"10000"`
	Confirm Duration    `json:"confirm,omitzero" doc:"Take it back after this time, unless it is confirmed; absent: not" example:"60s"`
}

// AllowItem is one allow entry that is asked for.
type AllowItem struct {
	Prefix   string `json:"prefix" maxLength:"80" example:"192.0.2.0/24"`
	NoLimits bool   `json:"no_limits,omitempty" doc:"Exempt from limits, too. A source address can be forged"`
	Comment  string `json:"comment,omitempty" maxLength:"256"`
	For      string `json:"for,omitempty" maxLength:"40" doc:"How long; absent: until it is taken back" example:"1h"`
}

// UnallowRequest takes allow entries back.
type UnallowRequest struct {
	Prefixes []string `json:"prefixes" minItems:"1" maxItems:"10000"`
}

// AllowResult is the answer for one prefix.
type AllowResult struct {
	Prefix string   `json:"prefix"`
	Status Status   `json:"status" enum:"added,changed,unchanged,removed,refused"`
	Allow  *Allow   `json:"allow,omitempty"`
	Notes  []string `json:"notes,omitempty"`
	Error  *Error   `json:"error,omitempty"`
}

// AllowResponse answers a batch.
type AllowResponse struct {
	Allow   []AllowResult `json:"allow"`
	Done    int           `json:"done"`
	Refused int           `json:"refused"`
	Trial   *Trial        `json:"trial,omitempty" doc:"Present if it has to be confirmed"`
}

// AllowList is every allow entry.
type AllowList struct {
	Allow []Allow `json:"allow"`
}

// LimitView is a limit, and what it has done.
type LimitView struct {
	Limit
	Exceeded []Exceeded   `json:"exceeded" doc:"By threshold, since the tables were made"`
	Sources  []SourceView `json:"top,omitempty" doc:"Whom it drops most"`
	Trial    *Trial       `json:"trial,omitempty" doc:"Present if it was just set, and has to be confirmed"`
}

// Exceeded is how many packets broke a threshold of a limit.
type Exceeded struct {
	Threshold string  `json:"threshold" doc:"packets, bits, syn, udp, icmp, fragments, aggregate or penalty"`
	Monitored bool    `json:"monitored,omitempty" doc:"They passed after all"`
	Packets   uint64  `json:"packets"`
	Bytes     uint64  `json:"bytes"`
	PerSecond float64 `json:"packets_per_second,omitempty" doc:"While it was sampled"`
}

// LimitList is every limit that is in force.
type LimitList struct {
	Limits []LimitView `json:"limits"`
}

// InterfaceView is an interface that is shielded, or that is to be.
type InterfaceView struct {
	Name       string        `json:"name"`
	Attached   bool          `json:"attached"`
	Mode       string        `json:"mode,omitempty" doc:"native or generic, while attached"`
	Why        string        `json:"why,omitempty" doc:"Why it is not attached, or not native"`
	Wanted     InterfaceMode `json:"wanted,omitempty" doc:"The mode that was asked for; absent: nobody asks for it"`
	Source     Source        `json:"source,omitempty" doc:"Who asks for it: config or api"`
	Ifindex    int           `json:"ifindex,omitempty"`
	ProgramID  uint32        `json:"program_id,omitempty"`
	ProgramTag string        `json:"program_tag,omitempty"`
	Trial      *Trial        `json:"trial,omitempty" doc:"Present if it was just attached, and that has to be confirmed"`
}

// InterfaceList is every interface that is shielded, or that is to be.
type InterfaceList struct {
	Interfaces []InterfaceView `json:"interfaces"`
}

// AttachRequest asks for an interface to be shielded.
type AttachRequest struct {
	Name    string        `json:"name" minLength:"1" maxLength:"15" example:"eth0"`
	Mode    InterfaceMode `json:"mode,omitempty" enum:"auto,native,generic" doc:"By default auto: native, then generic"`
	Confirm Duration      `json:"confirm,omitzero" doc:"Take it back after this time, unless it is confirmed; absent: not" example:"60s"`
}

// ReloadResponse answers a request to read the configuration again.
type ReloadResponse struct {
	Trial *Trial `json:"trial,omitempty" doc:"Present if it has to be confirmed"`
}

// ConfirmRequest keeps changes that are on trial.
type ConfirmRequest struct {
	IDs []string `json:"ids,omitempty" maxItems:"10000" doc:"Which; absent: all"`
}

// ConfirmResponse says what is kept.
type ConfirmResponse struct {
	Confirmed []Trial `json:"confirmed"`
}

// TrialList is every change that is on trial.
type TrialList struct {
	Trials    []Trial      `json:"trials"`
	TakenBack []EndedTrial `json:"taken_back,omitempty" doc:"What was taken back within the last hour, the newest last; the audit log has what was before, and before the daemon's start"`
}

// SourceView is one tracked source.
type SourceView struct {
	Prefix           netip.Prefix `json:"prefix"`
	Limit            string       `json:"limit" doc:"To which it is held"`
	Packets          uint64       `json:"packets" doc:"That passed"`
	Bytes            uint64       `json:"bytes" doc:"That passed"`
	Dropped          uint64       `json:"dropped" doc:"Packets that its limit dropped, or would have if it did not only monitor"`
	First            time.Time    `json:"first"`
	Seen             time.Time    `json:"seen"`
	PenaltyUntil     time.Time    `json:"penalty_until,omitzero"`
	PacketsPerSecond float64      `json:"packets_per_second,omitempty" doc:"While it was sampled"`
	BitsPerSecond    float64      `json:"bits_per_second,omitempty"`
	DroppedPerSecond float64      `json:"dropped_per_second,omitempty"`
	Banned           bool         `json:"banned,omitempty" doc:"It is banned by now"`
	Allowed          bool         `json:"allowed,omitempty" doc:"An allow entry speaks for it"`
	Monitored        bool         `json:"monitored,omitempty" doc:"Its limit only monitors by now: what breaks it passes, and is counted as dropped all the same"`
}

// Order is by what sources are compared.
type Order string

// The orders.
const (
	ByPackets Order = "packets"
	ByBytes   Order = "bytes"
	ByDropped Order = "dropped"
)

// SourceList is the first sources of an order.
type SourceList struct {
	Sources  []SourceView `json:"sources"`
	By       Order        `json:"by"`
	Tracked  int          `json:"tracked" doc:"How many sources are tracked in all"`
	Capacity int          `json:"capacity"`
	Sampled  Duration     `json:"sampled,omitzero" doc:"For how long rates were measured"`
}

// Check is everything that concerns an address.
type Check struct {
	Address    netip.Addr   `json:"address"`
	Verdict    Verdict      `json:"verdict" enum:"banned,penalty,monitored,allowed,passes"`
	Words      string       `json:"words" doc:"The verdict in a sentence"`
	Claims     []Claim      `json:"claims" doc:"On it, or on prefixes that contain it"`
	Kernel     *KernelBan   `json:"kernel,omitempty" doc:"The ban that the kernel answers with"`
	Allows     []Allow      `json:"allows" doc:"Entries that contain it"`
	Limits     []string     `json:"limits" doc:"The limit that its packets fall under; more where that depends on the destination"`
	Sources    []SourceView `json:"sources" doc:"What is counted for it"`
	Events     []EventView  `json:"events" doc:"Packets of it that were sampled lately, the newest first"`
	Interfaces int          `json:"interfaces" doc:"How many interfaces are shielded"`
}

// MostContained is how many claims within a prefix its check shows.
const MostContained = 100

// PrefixCheck is everything that concerns a prefix.
type PrefixCheck struct {
	Prefix     netip.Prefix `json:"prefix"`
	Verdict    Verdict      `json:"verdict" enum:"banned,partly,monitored,allowed,passes" doc:"banned: the whole prefix is; partly: a part of it"`
	Words      string       `json:"words" doc:"The verdict in a sentence"`
	Claims     []Claim      `json:"claims" doc:"On the prefix itself"`
	Containing []Claim      `json:"containing" doc:"On prefixes that contain it, the most specific first"`
	Contained  []Claim      `json:"contained" doc:"On prefixes within it, the newest first, 100 at most"`
	Total      int          `json:"contained_total" doc:"How many claims there are on prefixes within it"`
	Allows     []Allow      `json:"allows" doc:"Entries that contain it or lie within it, the widest first; protected addresses, too"`
	Interfaces int          `json:"interfaces" doc:"How many interfaces are shielded"`
}

// Verdict says what happens to the packets of an address or a prefix.
type Verdict string

// The verdicts.
const (
	VerdictBanned    Verdict = "banned"    // dropped
	VerdictPartly    Verdict = "partly"    // a part of a prefix is dropped
	VerdictPenalty   Verdict = "penalty"   // dropped until its penalty ends
	VerdictMonitored Verdict = "monitored" // they would be dropped, if it were not only counted
	VerdictAllowed   Verdict = "allowed"   // an allow entry overrules a ban
	VerdictPasses    Verdict = "passes"    // unless it breaks its limit
)

// KernelBan is a ban as the kernel has it.
type KernelBan struct {
	Prefix  netip.Prefix `json:"prefix"`
	Origin  Origin       `json:"origin,omitempty"`
	Monitor bool         `json:"monitor,omitempty"`
	Expires time.Time    `json:"expires,omitzero"`
}

// EventView is one sampled packet.
type EventView struct {
	Time        time.Time  `json:"time"`
	Interface   string     `json:"interface"`
	Reason      string     `json:"reason"`
	Monitored   bool       `json:"monitored,omitempty"`
	Source      netip.Addr `json:"source,omitzero"`
	Destination netip.Addr `json:"destination,omitzero"`
	Protocol    string     `json:"protocol,omitempty"`
	SourcePort  uint16     `json:"source_port,omitempty"`
	Port        uint16     `json:"port,omitempty"`
	Origin      Origin     `json:"origin,omitempty" doc:"Of the ban"`
	Limit       string     `json:"limit,omitempty"`
	Length      uint32     `json:"length"`
}

// Counted is what went one way, by reason.
type Counted struct {
	Interface string  `json:"interface,omitempty" doc:"Absent where all are added up"`
	Family    string  `json:"family,omitempty"`
	Action    string  `json:"action" enum:"pass,drop,monitor" doc:"monitor: it would have been dropped, and passed"`
	Reason    string  `json:"reason"`
	Words     string  `json:"words,omitempty" doc:"The reason in words"`
	Packets   uint64  `json:"packets"`
	Bytes     uint64  `json:"bytes"`
	PerSecond float64 `json:"packets_per_second,omitempty" doc:"While it was sampled"`
	Bits      float64 `json:"bits_per_second,omitempty"`
}

// The actions.
const (
	ActionPass    = "pass"
	ActionDrop    = "drop"
	ActionMonitor = "monitor"
)

// Stats is every counter.
type Stats struct {
	Counters []Counted         `json:"counters"`
	Lists    []ListCounted     `json:"lists"`
	Limits   []LimitCounted    `json:"limits"`
	Program  map[string]uint64 `json:"program" doc:"What the program counts beside the reasons"`
}

// ListCounted is what the bans of an origin dropped.
type ListCounted struct {
	Origin    Origin `json:"origin"`
	Monitored bool   `json:"monitored,omitempty"`
	Packets   uint64 `json:"packets"`
	Bytes     uint64 `json:"bytes"`
}

// LimitCounted is what a limit dropped.
type LimitCounted struct {
	Limit string `json:"limit"`
	Exceeded
}

// Table is how full a table of the kernel's is.
type Table struct {
	Table    string `json:"table"`
	Entries  int    `json:"entries"`
	Capacity int    `json:"capacity"`
}

// Health says whether the daemon is all right.
type Health struct {
	State    string   `json:"state" enum:"ok,degraded,starting"`
	Problems []string `json:"problems" doc:"What is wrong, and what to do"`
}

// OriginStatus is what an origin has banned, and what that dropped.
type OriginStatus struct {
	OriginCount
	Packets   uint64  `json:"packets" doc:"Dropped by its bans"`
	PerSecond float64 `json:"packets_per_second,omitempty"`
}

// Overview answers: what is being dropped, why, and is anybody innocent among it?
type Overview struct {
	Version    string          `json:"version"`
	Started    time.Time       `json:"started"`
	Time       time.Time       `json:"time"`
	Health     Health          `json:"health"`
	Mode       Mode            `json:"mode"`
	Panic      bool            `json:"panic" doc:"Everything passes"`
	Sampled    Duration        `json:"sampled,omitzero" doc:"For how long rates were measured"`
	Interfaces []InterfaceView `json:"interfaces"`
	Traffic    []Counted       `json:"traffic" doc:"By action and reason, all interfaces together"`
	Origins    []OriginStatus  `json:"origins"`
	Prefixes   struct {
		IPv4 int `json:"ipv4"`
		IPv6 int `json:"ipv6"`
	} `json:"prefixes" doc:"Banned"`
	Allows    int         `json:"allows" doc:"Prefixes that are allowed"`
	Protected int         `json:"protected" doc:"Prefixes that Levee allows by itself"`
	Limits    []LimitView `json:"limits"`
	Tables    []Table     `json:"tables"`
	Untracked uint64      `json:"untracked" doc:"Packets of sources that found no room to be tracked"`
	Events    struct {
		Written int `json:"written"`
		Lost    int `json:"lost"`
	} `json:"events" doc:"Sampled packets"`
	Reconcile Reconciled `json:"reconcile"`
	Trials    []Trial    `json:"trials,omitempty" doc:"What is taken back unless it is confirmed"`

	TakenBack []EndedTrial `json:"taken_back,omitempty" doc:"What was taken back within the last hour, the newest last"`
}

// Reconciled is what the last full comparison of state and kernel found.
type Reconciled struct {
	Time  time.Time `json:"time,omitzero"`
	Took  Duration  `json:"took,omitzero"`
	Drift int       `json:"drift" doc:"How many entries differed, and were put right; 0 unless someone else writes the tables"`
	Error string    `json:"error,omitempty"`
}

// PanicSwitch is the panic switch.
type PanicSwitch struct {
	On bool `json:"on" doc:"Everything passes at once"`
}
