package reference

import (
	"encoding/binary"
	"net/netip"
)

// Verdict is what the bytes alone say about a frame.
type Verdict uint8

// The verdicts, in the order in which they are found.
const (
	Sound       Verdict = iota // nothing wrong with it
	NonIP                      // neither IPv4 nor IPv6
	MalformedL3                // an IP header that a host discards
	Martian                    // a source that no sender can have
	MalformedL4                // a transport header that a host discards
)

// String names the verdict.
func (v Verdict) String() string {
	return [...]string{"sound", "non_ip", "malformed_l3", "martian", "malformed_l4"}[v]
}

// Unknown is the protocol of a packet whose transport header lies behind the bounds of the walk.
const Unknown = 255

// The bounds of the walk.
const (
	maxTags       = 2
	maxExtensions = 8
	maxOffset     = 4096
)

// Packet is what was read from a frame. What lies behind a malformed header is zero.
type Packet struct {
	Verdict     Verdict
	Family      int // 0, 4 or 6
	Source      netip.Addr
	Destination netip.Addr
	Protocol    uint8

	Ports           bool // the two below were read
	SourcePort      uint16
	DestinationPort uint16

	Fragment bool // any fragment, the first one too; not an atomic one
	SYN      bool // TCP with SYN and without ACK
	Control  bool // ARP, neighbour discovery or an ICMP error
}

// reader is what the walk knows: the frame, how much of it can be read, where it stands.
type reader struct {
	frame    []byte
	readable int // bytes of the frame in its first buffer
	pos      int
	end      int // where the IP packet ends
	hops     uint8
}

// sight says whether a header can be read.
type sight uint8

const (
	seen    sight = iota
	cut           // the packet ends before the header does
	outside       // the header is there, but out of reach
)

// look returns the next n bytes without moving on.
func (r *reader) look(n int) ([]byte, sight) {
	switch {
	case r.pos+n > r.end:
		return nil, cut
	case r.pos > maxOffset || r.pos+n > r.readable:
		return nil, outside
	}
	return r.frame[r.pos : r.pos+n], seen
}

// Parse reads a frame of which the first `readable` bytes are in reach.
func Parse(frame []byte, readable int) Packet {
	r := &reader{frame: frame, readable: min(readable, len(frame)), end: len(frame)}
	var p Packet

	b, s := r.look(14)
	if s != seen {
		p.Verdict = MalformedL3
		return p
	}
	ether := binary.BigEndian.Uint16(b[12:])
	r.pos = 14
	for tags := 0; tags < maxTags && (ether == 0x8100 || ether == 0x88A8); tags++ {
		if b, s = r.look(4); s != seen {
			p.Verdict = MalformedL3
			return p
		}
		ether = binary.BigEndian.Uint16(b[2:])
		r.pos += 4
	}

	switch ether {
	case 0x0800:
		p.Family = 4
		r.ipv4(&p)
	case 0x86DD:
		p.Family = 6
		r.ipv6(&p)
	case 0x0806:
		p.Verdict, p.Control = NonIP, true
	case 0x8100, 0x88A8:
		p.Verdict = MalformedL3 // Linux strips any number of priority tags
	default:
		p.Verdict = NonIP
	}
	return p
}

// ipv4 reads an IPv4 header (RFC 791) and what follows it.
func (r *reader) ipv4(p *Packet) {
	p.Verdict = MalformedL3
	b, s := r.look(20)
	if s != seen || b[0]>>4 != 4 {
		return
	}
	header, total := int(b[0]&15)*4, int(binary.BigEndian.Uint16(b[2:]))
	if header < 20 || total < header || r.pos+total > len(r.frame) {
		return
	}
	p.Source, _ = netip.AddrFromSlice(b[12:16])
	p.Destination, _ = netip.AddrFromSlice(b[16:20])
	p.Protocol = b[9] // of a fragment; else the walk finds it
	r.hops = b[8]
	r.end = r.pos + total
	r.pos += header

	flags := binary.BigEndian.Uint16(b[6:])
	p.Fragment = flags&0x3FFF != 0 // more to come, or an offset
	bad := false
	if flags&0x1FFF == 0 {
		bad = !r.extensions(p, p.Protocol)
	}
	p.Verdict = judge(p, bad)
}

// ipv6 reads an IPv6 header (RFC 8200), its extension headers, and what follows them.
func (r *reader) ipv6(p *Packet) {
	p.Verdict = MalformedL3
	b, s := r.look(40)
	if s != seen || b[0]>>4 != 6 {
		return
	}
	payload, next := int(binary.BigEndian.Uint16(b[4:])), b[6]
	if r.pos+40+payload > len(r.frame) {
		return
	}
	p.Source, _ = netip.AddrFromSlice(b[8:24])
	p.Destination, _ = netip.AddrFromSlice(b[24:40])
	r.hops = b[7]
	r.pos += 40
	if payload != 0 || next != 0 { // else a jumbogram (RFC 2675): the frame's end is the packet's
		r.end = r.pos + payload
	}
	p.Verdict = judge(p, !r.extensions(p, next))
}

// extensions walks over what stands before the transport header. False means that a host would discard the packet.
func (r *reader) extensions(p *Packet, next uint8) bool {
	for walked := 0; ; walked++ {
		if !isExtension(p.Family, next) {
			return r.transport(p, next)
		}
		if walked == maxExtensions {
			p.Protocol = Unknown
			return true
		}
		b, s := r.look(8)
		if s != seen {
			p.Protocol = Unknown
			return s == outside || p.Fragment
		}
		size := (int(b[1]) + 1) * 8
		switch next {
		case 44: // fragment: 8 bytes, and no length of its own
			size = 8
			word := binary.BigEndian.Uint16(b[2:])
			p.Fragment = p.Fragment || word&0xFFF9 != 0
			if word>>3 != 0 {
				p.Protocol = b[0]
				return true
			}
		case 51: // authentication header (RFC 4302)
			size = (int(b[1]) + 2) * 4
		}
		if r.pos+size > r.end {
			p.Protocol = Unknown
			return p.Fragment
		}
		next = b[0]
		r.pos += size
	}
}

// isExtension knows IANA's "IPv6 extension header types" that have the common form, without ESP,
// behind which nothing can be read. In IPv4 the authentication header is the only one.
func isExtension(family int, number uint8) bool {
	switch number {
	case 0, 43, 44, 60, 135, 139, 140:
		return family == 6
	}
	return number == 51
}

// transport reads what stands at the reader's place. False means that a host would discard it.
func (r *reader) transport(p *Packet, number uint8) bool {
	p.Protocol = number
	least := map[uint8]int{1: 8, 6: 20, 17: 8, 58: 8, 132: 8, 136: 8}[number]
	if least == 0 {
		return true
	}
	if number == 1 && p.Family != 4 || number == 58 && p.Family != 6 {
		return true
	}
	b, s := r.look(least)
	if s != seen {
		// A fragment may be cut anywhere; what is out of reach can't be judged.
		return s == outside || p.Fragment
	}
	rest := r.end - r.pos

	switch number {
	case 1, 58:
		if !p.Fragment {
			p.Control = isControl(number, b[0], r.hops)
		}
		return true
	case 6:
		p.SYN = b[13]&0x12 == 0x02
	}
	p.Ports = true
	p.SourcePort = binary.BigEndian.Uint16(b)
	p.DestinationPort = binary.BigEndian.Uint16(b[2:])

	var length int
	switch number {
	case 6:
		length = int(b[12]>>4) * 4
	case 17:
		length = int(binary.BigEndian.Uint16(b[4:]))
		if length == 0 && p.Family == 6 {
			return true // RFC 2675
		}
	default:
		return true
	}
	return length >= least && (length <= rest || p.Fragment)
}

// isControl knows the errors of RFC 792 and RFC 4443 and the messages of RFC 4861, which count only
// with the hop limit that proves that they come from this link.
func isControl(number, kind, hops uint8) bool {
	if number == 1 {
		return kind == 3 || kind == 11 || kind == 12
	}
	return kind >= 1 && kind <= 4 || kind >= 133 && kind <= 137 && hops == 255
}

// martians are the sources that a host takes for impossible (RFC 1122 3.2.1.3, RFC 4291 2.5.3, 2.7,
// and 2.5.5.2, whose addresses never stand on a wire).
var martians = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("255.255.255.255/32"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("ff00::/8"),
}

func judge(p *Packet, bad bool) Verdict {
	for _, m := range martians {
		if m.Contains(p.Source) {
			return Martian
		}
	}
	if p.Source.Is4In6() {
		return Martian
	}
	if bad {
		return MalformedL4
	}
	return Sound
}
