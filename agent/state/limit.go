package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Mode says what happens to a packet that would be dropped.
type Mode string

// The modes.
const (
	Enforce Mode = "enforce" // it is dropped
	Monitor Mode = "monitor" // it is counted, and passes
)

// UnmarshalText reads a mode.
func (m *Mode) UnmarshalText(b []byte) error {
	switch s := string(b); Mode(s) {
	case Enforce, Monitor:
		*m = Mode(s)
		return nil
	default:
		return invalid("mode", s, "is neither enforce nor monitor")
	}
}

// Source says where an entry was set.
type Source string

// The sources. What the configuration file sets is replaced when it is read again; what was set at
// run time lives in the state.
const (
	FromConfig  Source = "config"
	FromAPI     Source = "api"
	FromDefault Source = "default"
	// FromProtected marks allow entries that Levee makes for itself.
	FromProtected Source = "protected"
)

// Prefix is a prefix that reads a bare address, too.
type Prefix struct{ netip.Prefix }

// UnmarshalText reads a prefix as ParsePrefix does.
func (p *Prefix) UnmarshalText(b []byte) (err error) {
	p.Prefix, err = ParsePrefix(string(b))
	return err
}

// MarshalText writes the prefix with its length.
func (p Prefix) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// Service is a destination protocol and port: tcp/443, udp/53, icmp, 47.
type Service struct {
	Protocol uint8
	Port     uint16 // 0: any, or the protocol has none
}

var protocols = []struct {
	name   string
	number uint8
}{
	{"icmp", 1}, {"igmp", 2}, {"tcp", 6}, {"udp", 17}, {"dccp", 33}, {"gre", 47}, {"esp", 50},
	{"ah", 51}, {"icmpv6", 58}, {"sctp", 132}, {"udplite", 136},
}

// ParseService reads a service: a protocol by name or number, and for TCP and UDP a port.
func ParseService(s string) (Service, error) {
	const forms = "write tcp/443, udp/53, icmp or a protocol's number"
	name, port, hasPort := strings.Cut(strings.ToLower(strings.TrimSpace(s)), "/")
	var v Service
	for _, p := range protocols {
		if p.name == name {
			v.Protocol = p.number
		}
	}
	if v.Protocol == 0 {
		n, err := strconv.ParseUint(name, 10, 8)
		if err != nil || n == 0 || n == 255 {
			return Service{}, invalid("service", s, "its protocol is not known; %s", forms)
		}
		v.Protocol = uint8(n)
	}
	if !hasPort {
		return v, nil
	}
	if v.Protocol != 6 && v.Protocol != 17 {
		return Service{}, invalid("service", s, "has a port; only tcp and udp are told apart by port")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return Service{}, invalid("service", s, "its port is not within 1 to 65535")
	}
	v.Port = uint16(n)
	return v, nil
}

// String writes the service as ParseService reads it.
func (v Service) String() string {
	name := strconv.Itoa(int(v.Protocol))
	for _, p := range protocols {
		if p.number == v.Protocol {
			name = p.name
		}
	}
	if v.Port != 0 {
		return fmt.Sprintf("%s/%d", name, v.Port)
	}
	return name
}

// MarshalText writes the service as String does.
func (v Service) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText reads a service as ParseService does.
func (v *Service) UnmarshalText(b []byte) (err error) {
	*v, err = ParseService(string(b))
	return err
}

// Threshold is a rate, and what may come at once. Written as a plain rate where the burst is the
// default: one second's worth, at least one packet, at least 64 KiB.
type Threshold struct {
	Rate  Rate  `json:"rate"`
	Burst Burst `json:"burst,omitzero"` // zero: the default
}

type thresholdObject struct {
	Rate  Rate   `json:"rate"`
	Burst *Burst `json:"burst,omitempty"`
}

// MarshalJSON writes the rate alone where the burst is the default.
func (t Threshold) MarshalJSON() ([]byte, error) {
	if t.Burst.Units == 0 {
		return json.Marshal(t.Rate)
	}
	return json.Marshal(thresholdObject{t.Rate, &t.Burst})
}

// UnmarshalJSON reads a rate, or an object of rate and burst.
func (t *Threshold) UnmarshalJSON(b []byte) error {
	var o thresholdObject
	if len(b) > 0 && b[0] == '"' {
		if err := json.Unmarshal(b, &o.Rate); err != nil {
			return err
		}
	} else {
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&o); err != nil {
			if _, ok := errors.AsType[*Error](err); ok {
				return err
			}
			return invalid("threshold", string(b), "is neither a rate such as 20k/s nor an object of rate and burst: %s",
				strings.TrimPrefix(err.Error(), "json: "))
		}
	}
	*t = Threshold{Rate: o.Rate}
	if o.Burst != nil {
		t.Burst = *o.Burst
	}
	return nil
}

// String writes the rate, and the burst where it is not the default.
func (t Threshold) String() string {
	if t.Burst.Units == 0 {
		return t.Rate.String()
	}
	return t.Rate.String() + " burst " + t.Burst.String()
}

// BurstUnits returns the burst in packets or bits, the default resolved.
func (t Threshold) BurstUnits() float64 {
	if t.Burst.Units != 0 {
		return float64(t.Burst.Units)
	}
	if t.Rate.Bits {
		return max(t.Rate.PerSecond(), 64<<10*8)
	}
	return max(t.Rate.PerSecond(), 1)
}

// Group says which prefix length makes one source.
type Group struct {
	IPv4 int `json:"ipv4,omitempty" doc:"8 to 32; by default 32"`
	IPv6 int `json:"ipv6,omitempty" doc:"16 to 128; by default 64"`
}

// Aggregate limits all sources of a prefix together.
type Aggregate struct {
	Rate   Rate   `json:"rate" doc:"Packets of the whole prefix"`
	Burst  *Burst `json:"burst,omitempty"`
	IPv4   int    `json:"ipv4,omitempty" doc:"8 to 32; by default 24"`
	IPv6   int    `json:"ipv6,omitempty" doc:"16 to 48; by default 48"`
	Always bool   `json:"always,omitempty" doc:"Charge every packet, and not just those of sources that found no room"`
}

// Threshold returns the aggregate's rate and burst.
func (a Aggregate) Threshold() Threshold {
	t := Threshold{Rate: a.Rate}
	if a.Burst != nil {
		t.Burst = *a.Burst
	}
	return t
}

// LimitSpec is what a limit says: whom it is bound to, and what they may send.
type LimitSpec struct {
	Sources   []Prefix   `json:"sources,omitempty" doc:"Bound to packets from these prefixes"`
	Services  []Service  `json:"services,omitempty" doc:"Bound to packets to these protocols and ports"`
	Packets   *Threshold `json:"packets,omitempty"`
	Bits      *Threshold `json:"bits,omitempty"`
	SYN       *Threshold `json:"syn,omitempty" doc:"TCP connections opened"`
	UDP       *Threshold `json:"udp,omitempty"`
	ICMP      *Threshold `json:"icmp,omitempty"`
	Fragments *Threshold `json:"fragments,omitempty"`
	Penalty   Duration   `json:"penalty,omitzero" doc:"How long a source that broke the limit is dropped whole; absent: only the excess is"`
	Mode      Mode       `json:"mode,omitempty" enum:"enforce,monitor" doc:"By default enforce"`
	Group     Group      `json:"group,omitzero" doc:"Which prefix length makes one source"`
	Aggregate *Aggregate `json:"aggregate,omitempty" doc:"A limit for all sources of a prefix together"`
}

// Limit is a named limit that is in force.
type Limit struct {
	Name   string `json:"name"`
	Number uint8  `json:"number" doc:"Its number in the kernel"`
	Source Source `json:"source" enum:"config,api,default" doc:"Where it was set"`
	Actor  string `json:"actor,omitempty" doc:"Who set it at run time"`
	LimitSpec
}

// DefaultLimit is the name of the limit of packets that no other speaks for; its number is 0.
const DefaultLimit = "default"

// Named is a threshold with its name.
type Named struct {
	Name string
	*Threshold
}

// Thresholds returns the thresholds in the order of the kernel's, those not set being nil.
func (l *LimitSpec) Thresholds() []Named {
	return []Named{
		{"packets", l.Packets}, {"bits", l.Bits}, {"syn", l.SYN},
		{"udp", l.UDP}, {"icmp", l.ICMP}, {"fragments", l.Fragments},
	}
}

// GroupLengths returns the prefix lengths that make one source, the defaults resolved.
func (l *LimitSpec) GroupLengths() (ipv4, ipv6 int) {
	return orDefault(l.Group.IPv4, 32), orDefault(l.Group.IPv6, 64)
}

// AggregateLengths returns the prefix lengths of the aggregate, the defaults resolved.
func (l *LimitSpec) AggregateLengths() (ipv4, ipv6 int) {
	if l.Aggregate == nil {
		return 24, 48
	}
	return orDefault(l.Aggregate.IPv4, 24), orDefault(l.Aggregate.IPv6, 48)
}

func orDefault(n, d int) int {
	if n == 0 {
		return d
	}
	return n
}

// Equal tells whether two limits say the same.
func (l *LimitSpec) Equal(o *LimitSpec) bool {
	a, errA := json.Marshal(l)
	b, errB := json.Marshal(o)
	return errA == nil && errB == nil && bytes.Equal(a, b)
}

// maxPenalty and maxBurst bound how far ahead of now a source's state may stand.
const (
	maxPenalty = 7 * 24 * time.Hour
	maxBurst   = 24 * time.Hour
)

// CheckLimitName checks a limit's name.
func CheckLimitName(name string) *Error {
	if !nameOK(name) {
		return invalid("name", name, "is not a limit's name: up to 32 of a-z, 0-9, '.', '_' and '-', beginning with a letter or a digit")
	}
	return nil
}

// Validate checks a limit of a name by itself, and sorts what it is bound to.
func (l *LimitSpec) Validate(name string) *Error {
	if err := CheckLimitName(name); err != nil {
		return err
	}
	if name == DefaultLimit && len(l.Sources)+len(l.Services) > 0 {
		return invalid("sources", "", "the default limit is for whatever no other limit is bound to: give the one with sources or services another name")
	}
	if name != DefaultLimit && len(l.Sources)+len(l.Services) == 0 {
		return invalid("sources", "", "the limit is bound to nothing: give it sources or services")
	}
	for _, t := range l.Thresholds() {
		if t.Threshold == nil {
			continue
		}
		if err := t.validate(t.Name == "bits"); err != nil {
			return err.In(t.Name)
		}
	}
	if l.Penalty < 0 || time.Duration(l.Penalty) > maxPenalty {
		return invalid("penalty", l.Penalty.String(), "is longer than 7d")
	}
	switch l.Mode {
	case "", Enforce, Monitor:
	default:
		return invalid("mode", string(l.Mode), "is neither enforce nor monitor")
	}
	g4, g6 := l.GroupLengths()
	a4, a6 := l.AggregateLengths()
	for _, f := range []struct {
		name            string
		value, min, max int
	}{
		{"group.ipv4", g4, 8, 32},
		{"group.ipv6", g6, 16, 128},
		{"aggregate.ipv4", a4, 8, 32},
		{"aggregate.ipv6", a6, 16, 48},
	} {
		if f.value < f.min || f.value > f.max {
			return invalid(f.name, strconv.Itoa(f.value), "is not a prefix length from %d to %d", f.min, f.max)
		}
	}
	if l.Aggregate != nil {
		if err := l.Aggregate.Threshold().validate(false); err != nil {
			return err.In("aggregate")
		}
	}
	return l.sortBindings()
}

func (t Threshold) validate(bits bool) *Error {
	switch {
	case t.Rate.Count == 0:
		return invalid("rate", t.Rate.String(), "is nothing at all; leave the threshold out, or ban the source")
	case bits && !t.Rate.Bits:
		return invalid("rate", t.Rate.String(), "counts packets; write bits, as in 200Mbit/s")
	case !bits && t.Rate.Bits:
		return invalid("rate", t.Rate.String(), "counts bits; write packets, as in 20k/s")
	case t.Burst.Units != 0 && bits && !t.Burst.Bits:
		return invalid("burst", t.Burst.String(), "counts packets; write bits, as in 16Mbit or 256KiB")
	case t.Burst.Units != 0 && !bits && t.Burst.Bits:
		return invalid("burst", t.Burst.String(), "counts bits; write packets, as in 40k")
	case bits && t.Burst.Units != 0 && t.Burst.Units < 2000*8:
		return invalid("burst", t.Burst.String(), "is less than a packet; no large one would ever pass")
	case t.BurstUnits()/t.Rate.PerSecond() > maxBurst.Seconds():
		return invalid("burst", t.Burst.String(), "is more than a day's worth of %s", t.Rate)
	}
	return nil
}

func (l *LimitSpec) sortBindings() *Error {
	l.Sources, l.Services = slices.Clone(l.Sources), slices.Clone(l.Services)
	for i := range l.Sources {
		p, err := Canonical(l.Sources[i].Prefix)
		if err != nil {
			return AsError(err, CodeInvalid).In("sources")
		}
		l.Sources[i].Prefix = p
	}
	slices.SortFunc(l.Sources, func(a, b Prefix) int { return comparePrefix(a.Prefix, b.Prefix) })
	slices.SortFunc(l.Services, func(a, b Service) int {
		return (int(a.Protocol)-int(b.Protocol))<<16 + int(a.Port) - int(b.Port)
	})
	for i := 1; i < len(l.Sources); i++ {
		if l.Sources[i] == l.Sources[i-1] {
			return invalid("sources", l.Sources[i].String(), "stands here twice")
		}
	}
	for i := 1; i < len(l.Services); i++ {
		if l.Services[i] == l.Services[i-1] {
			return invalid("services", l.Services[i].String(), "stands here twice")
		}
	}
	return nil
}

// CheckLimits checks limits against each other: no two may be bound to the same. The error is about
// the limit that is the newest, if it is one of the two.
func CheckLimits(limits map[string]LimitSpec, newest string) *Error {
	sources := map[netip.Prefix]string{}
	services := map[Service]string{}
	for _, name := range slices.SortedFunc(maps.Keys(limits), func(a, b string) int {
		if a == newest || b == newest {
			return map[bool]int{true: 1, false: -1}[a == newest]
		}
		return strings.Compare(a, b)
	}) {
		l := limits[name]
		for _, p := range l.Sources {
			if other, ok := sources[p.Prefix]; ok {
				return (&Error{Code: CodeConflict, Field: "sources", Value: p.String(),
					Detail: fmt.Sprintf("is bound to the limit %q already", other)}).In("limits." + name)
			}
			sources[p.Prefix] = name
		}
		for _, v := range l.Services {
			if other, ok := services[v]; ok {
				return (&Error{Code: CodeConflict, Field: "services", Value: v.String(),
					Detail: fmt.Sprintf("is bound to the limit %q already", other)}).In("limits." + name)
			}
			services[v] = name
		}
	}
	return nil
}

func comparePrefix(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}
