package packet

import (
	"encoding/binary"
	"net/netip"
)

// Packet is a frame under construction: a stack of headers, outermost first. Each method adds a
// header, or changes the one that was added last, and returns the packet.
//
//	packet.New().VLAN(7).IP(src, dst).TCP(40000, 443).Flags(packet.SYN).Bytes()
type Packet struct {
	layers []layer
	pad    int // least length of the frame
	cut    int // greatest length of the frame; negative: whole
}

// kind says how a layer is encoded, and what the setters mean for it.
type kind uint8

const (
	kindEthernet kind = iota
	kindVLAN
	kindIPv4
	kindIPv6
	kindExtension
	kindTCP
	kindUDP
	kindICMP
	kindRaw
)

type layer struct {
	kind    kind
	ether   uint16 // the EtherType that announces it
	proto   uint8  // the IP protocol number that announces it
	head    []byte // the header, without what is filled in at the end
	src     netip.Addr
	dst     netip.Addr
	patches []patch
	hasNext bool // the next-protocol field was set by hand
	hasLen  bool // the length field was set by hand
	hasSum  bool // the checksum was set by hand
	is6     bool // ICMPv6
}

type patch struct {
	offset int
	bytes  []byte
}

// EtherTypes.
const (
	TypeIPv4  = 0x0800
	TypeARP   = 0x0806
	TypeVLAN  = 0x8100
	TypeIPv6  = 0x86DD
	TypeSVLAN = 0x88A8
)

// IP protocol numbers (IANA).
const (
	HopByHop     = 0
	ICMPv4Number = 1
	IPinIP       = 4
	TCPNumber    = 6
	UDPNumber    = 17
	IPv6inIP     = 41
	Routing      = 43
	Fragmented   = 44
	GRE          = 47
	ESP          = 50
	AH           = 51
	ICMPv6Number = 58
	NoNext       = 59
	DestOptions  = 60
	SCTPNumber   = 132
	Mobility     = 135
	UDPLite      = 136
	HIP          = 139
	Shim6        = 140
)

// TCP flags.
const (
	FIN = 0x01
	SYN = 0x02
	RST = 0x04
	PSH = 0x08
	ACK = 0x10
	URG = 0x20
)

// New starts a frame with an Ethernet header between two locally administered addresses.
func New() *Packet {
	p := &Packet{cut: -1}
	head := make([]byte, 14)
	copy(head, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	p.layers = append(p.layers, layer{kind: kindEthernet, head: head})
	return p
}

// MACs sets the Ethernet addresses.
func (p *Packet) MACs(src, dst [6]byte) *Packet {
	copy(p.layers[0].head, dst[:])
	copy(p.layers[0].head[6:], src[:])
	return p
}

// VLAN adds an 802.1Q tag.
func (p *Packet) VLAN(id uint16) *Packet { return p.tag(TypeVLAN, id) }

// SVLAN adds an 802.1ad service tag.
func (p *Packet) SVLAN(id uint16) *Packet { return p.tag(TypeSVLAN, id) }

func (p *Packet) tag(ether, id uint16) *Packet {
	head := binary.BigEndian.AppendUint16(nil, id)
	return p.add(layer{kind: kindVLAN, ether: ether, head: append(head, 0, 0)})
}

// Type sets the EtherType that the last Ethernet header or VLAN tag announces.
func (p *Packet) Type(ether uint16) *Packet {
	l := p.last()
	l.hasNext = true
	return p.Put16(len(l.head)-2, ether)
}

// ARP adds an ARP request for an IPv4 address (RFC 826).
func (p *Packet) ARP(src, dst netip.Addr) *Packet {
	head := []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2}
	head = append(head, src.AsSlice()...)
	head = append(head, 0, 0, 0, 0, 0, 0)
	head = append(head, dst.AsSlice()...)
	return p.add(layer{kind: kindRaw, ether: TypeARP, head: head})
}

// IP adds an IPv4 or IPv6 header, as the source's family is.
func (p *Packet) IP(src, dst netip.Addr) *Packet {
	if src.Is4() {
		head := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0}
		head = append(head, src.AsSlice()...)
		head = append(head, dst.AsSlice()...)
		return p.add(layer{kind: kindIPv4, ether: TypeIPv4, proto: IPinIP, head: head, src: src, dst: dst})
	}
	head := []byte{0x60, 0, 0, 0, 0, 0, NoNext, 64}
	head = append(head, src.AsSlice()...)
	head = append(head, dst.AsSlice()...)
	return p.add(layer{kind: kindIPv6, ether: TypeIPv6, proto: IPv6inIP, head: head, src: src, dst: dst})
}

// Version sets the version of the last IP header.
func (p *Packet) Version(v uint8) *Packet {
	return p.Put8(0, v<<4|p.last().head[0]&15)
}

// IHL sets the header length field of the last IPv4 header, in words, to a number of any truth.
func (p *Packet) IHL(words uint8) *Packet {
	return p.Put8(0, p.last().head[0]&0xF0|words)
}

// Options adds n words of padding options (type 1, no operation) to the last IPv4 or TCP header.
func (p *Packet) Options(words int) *Packet {
	l := p.last()
	for range words {
		l.head = append(l.head, 1, 1, 1, 1)
	}
	switch l.kind {
	case kindIPv4:
		l.head[0] = 0x40 | uint8(len(l.head)/4)
	case kindTCP:
		l.head[12] = uint8(len(l.head)/4) << 4
	default:
		panic("packet: options on neither IPv4 nor TCP")
	}
	return p
}

// Length sets the length field of the last IP or UDP header to a number of any truth: IPv4's total
// length, IPv6's payload length, UDP's length.
func (p *Packet) Length(n int) *Packet {
	l := p.last()
	l.hasLen = true
	return p.Put16(lengthOffset(l.kind), uint16(n))
}

// Checksum sets the checksum of the last IPv4, TCP, UDP or ICMP header.
func (p *Packet) Checksum(sum uint16) *Packet {
	l := p.last()
	l.hasSum = true
	return p.Put16(checksumOffset(l.kind), sum)
}

// HopLimit sets the hop limit of the last IPv6 header, or the time to live of the last IPv4 one.
func (p *Packet) HopLimit(n uint8) *Packet {
	if p.last().kind == kindIPv4 {
		return p.Put8(8, n)
	}
	return p.Put8(7, n)
}

// Next sets the number that the last IP or extension header announces.
func (p *Packet) Next(number uint8) *Packet {
	l := p.last()
	l.hasNext = true
	return p.Put8(nextOffset(l.kind), number)
}

// Fragment makes the packet a fragment at an offset in bytes: in the last IPv4 header, or by a
// fragment header. At offset 0 with none to follow it is an atomic fragment in IPv6 (RFC 6946), and
// no fragment in IPv4.
func (p *Packet) Fragment(offset int, more bool) *Packet {
	l := p.last()
	word := uint16(offset)
	if l.kind == kindIPv4 {
		word /= 8
		if more {
			word |= 0x2000
		}
		return p.Put16(6, word).Put16(4, 0x1234)
	}
	if more {
		word |= 1
	}
	head := []byte{NoNext, 0, 0, 0, 0, 0, 0x12, 0x34}
	binary.BigEndian.PutUint16(head[2:], word)
	return p.add(layer{kind: kindExtension, proto: Fragmented, head: head})
}

// Extension adds an IPv6 extension header of this number, (n+1)*8 bytes long. For AH it is (n+2)*4.
func (p *Packet) Extension(number, n uint8) *Packet {
	size := (int(n) + 1) * 8
	if number == AH {
		size = (int(n) + 2) * 4
	}
	head := make([]byte, size)
	head[0], head[1] = NoNext, n
	switch number {
	case HopByHop, DestOptions:
		// PadN options over the whole of it
		for i := 2; i < size; {
			n := min(size-i-2, 255)
			if n < 0 {
				break // a single byte: Pad1
			}
			head[i], head[i+1] = 1, uint8(n)
			i += n + 2
		}
	case Routing:
		head[2] = 4 // segment routing, no segments left
	}
	return p.add(layer{kind: kindExtension, proto: number, head: head})
}

// TCP adds a TCP header with ACK set.
func (p *Packet) TCP(sport, dport uint16) *Packet {
	head := make([]byte, 20)
	binary.BigEndian.PutUint16(head, sport)
	binary.BigEndian.PutUint16(head[2:], dport)
	binary.BigEndian.PutUint32(head[4:], 1)
	head[12], head[13], head[14] = 5<<4, ACK, 64
	return p.add(layer{kind: kindTCP, proto: TCPNumber, head: head})
}

// Flags sets the flags of the last TCP header.
func (p *Packet) Flags(flags uint8) *Packet { return p.Put8(13, flags) }

// DataOffset sets the data offset of the last TCP header, in words, to a number of any truth.
func (p *Packet) DataOffset(words uint8) *Packet { return p.Put8(12, words<<4) }

// UDP adds a UDP header.
func (p *Packet) UDP(sport, dport uint16) *Packet {
	return p.add(layer{kind: kindUDP, proto: UDPNumber, head: ports(sport, dport, 8)})
}

// UDPLite adds a UDP-Lite header that covers all of the packet (RFC 3828).
func (p *Packet) UDPLite(sport, dport uint16) *Packet {
	return p.add(layer{kind: kindRaw, proto: UDPLite, head: ports(sport, dport, 8)})
}

// SCTP adds an SCTP common header (RFC 9260).
func (p *Packet) SCTP(sport, dport uint16) *Packet {
	return p.add(layer{kind: kindRaw, proto: SCTPNumber, head: ports(sport, dport, 12)})
}

func ports(sport, dport uint16, size int) []byte {
	head := make([]byte, size)
	binary.BigEndian.PutUint16(head, sport)
	binary.BigEndian.PutUint16(head[2:], dport)
	return head
}

// ICMP adds an 8-byte ICMP header (RFC 792), whatever the family beneath it.
func (p *Packet) ICMP(kind, code uint8) *Packet {
	return p.add(layer{kind: kindICMP, proto: ICMPv4Number, head: []byte{kind, code, 0, 0, 0, 0, 0, 1}})
}

// ICMPv6 adds an 8-byte ICMPv6 header (RFC 4443), whatever the family beneath it.
func (p *Packet) ICMPv6(kind, code uint8) *Packet {
	return p.add(layer{kind: kindICMP, proto: ICMPv6Number, is6: true, head: []byte{kind, code, 0, 0, 0, 0, 0, 1}})
}

// Raw adds bytes that the header before announces by this IP protocol number.
func (p *Packet) Raw(number uint8, body ...byte) *Packet {
	return p.add(layer{kind: kindRaw, proto: number, head: append([]byte(nil), body...)})
}

// Payload adds n bytes of data that no header announces.
func (p *Packet) Payload(n int) *Packet {
	body := make([]byte, n)
	for i := range body {
		body[i] = uint8(i)
	}
	return p.add(layer{kind: kindRaw, proto: NoNext, head: body})
}

// Put8 sets a byte of the last header, after all else has been filled in but the checksum.
func (p *Packet) Put8(offset int, v uint8) *Packet {
	l := p.last()
	l.patches = append(l.patches, patch{offset, []byte{v}})
	return p
}

// Put16 sets two bytes of the last header, high byte first.
func (p *Packet) Put16(offset int, v uint16) *Packet {
	l := p.last()
	l.patches = append(l.patches, patch{offset, binary.BigEndian.AppendUint16(nil, v)})
	return p
}

// Pad makes the frame at least n bytes long, with zeros that no header counts: 60 is what Ethernet
// asks for.
func (p *Packet) Pad(n int) *Packet {
	p.pad = n
	return p
}

// Truncate cuts the frame to n bytes, whatever its headers say.
func (p *Packet) Truncate(n int) *Packet {
	p.cut = n
	return p
}

func (p *Packet) add(l layer) *Packet {
	p.layers = append(p.layers, l)
	return p
}

func (p *Packet) last() *layer { return &p.layers[len(p.layers)-1] }
