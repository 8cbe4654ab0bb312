package packet

import (
	"encoding/binary"
	"net/netip"
)

// Bytes returns the frame.
func (p *Packet) Bytes() []byte {
	var frame []byte
	for i := len(p.layers) - 1; i >= 0; i-- {
		frame = p.encode(i, frame)
	}
	for len(frame) < p.pad {
		frame = append(frame, 0)
	}
	if p.cut >= 0 && p.cut < len(frame) {
		frame = frame[:p.cut]
	}
	return frame
}

// Offsets returns where each header begins, Ethernet's first.
func (p *Packet) Offsets() []int {
	offsets := make([]int, len(p.layers))
	at := 0
	for i, l := range p.layers {
		offsets[i] = at
		at += len(l.head)
	}
	return offsets
}

// encode puts layer i before what it carries.
func (p *Packet) encode(i int, inner []byte) []byte {
	l := p.layers[i]
	frame := make([]byte, len(l.head), len(l.head)+len(inner))
	copy(frame, l.head)
	frame = append(frame, inner...)

	if i+1 < len(p.layers) && !l.hasNext {
		next := p.layers[i+1]
		switch l.kind {
		case kindEthernet, kindVLAN:
			binary.BigEndian.PutUint16(frame[len(l.head)-2:], next.ether)
		case kindIPv4, kindIPv6, kindExtension:
			frame[nextOffset(l.kind)] = next.proto
		default: // carries what nobody announces
		}
	}
	if !l.hasLen {
		switch l.kind {
		case kindIPv4, kindUDP:
			binary.BigEndian.PutUint16(frame[lengthOffset(l.kind):], uint16(len(frame)))
		case kindIPv6:
			binary.BigEndian.PutUint16(frame[lengthOffset(l.kind):], uint16(len(inner)))
		default: // has no length
		}
	}
	for _, patch := range l.patches {
		copy(frame[patch.offset:len(l.head)], patch.bytes)
	}

	if l.hasSum {
		return frame
	}
	var s uint16
	switch l.kind {
	case kindIPv4:
		s = ^fold(sum(0, frame[:len(l.head)]))
	case kindTCP:
		s = p.transportSum(i, TCPNumber, frame)
	case kindUDP:
		if s = p.transportSum(i, UDPNumber, frame); s == 0 {
			s = 0xFFFF // RFC 768: 0 means none
		}
	case kindICMP:
		s = ^fold(sum(0, frame))
		if l.is6 {
			s = p.transportSum(i, ICMPv6Number, frame)
		}
	default:
		return frame
	}
	binary.BigEndian.PutUint16(frame[checksumOffset(l.kind):], s)
	return frame
}

// transportSum is the checksum of a transport's segment under the IP header before it (RFC 1071,
// pseudo headers of RFC 9293 and RFC 8200).
func (p *Packet) transportSum(i int, number uint8, segment []byte) uint16 {
	var src, dst netip.Addr
	for j := i - 1; j >= 0 && !src.IsValid(); j-- {
		src, dst = p.layers[j].src, p.layers[j].dst
	}
	s := sum(0, src.AsSlice())
	s = sum(s, dst.AsSlice())
	s = sum(s, binary.BigEndian.AppendUint32(nil, uint32(len(segment))))
	s = sum(s, []byte{0, number})
	return ^fold(sum(s, segment))
}

// sum adds bytes to a one's complement sum. All but the last call's bytes must be even in number.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		s += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		s += uint32(b[0]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s>>16 != 0 {
		s = s&0xFFFF + s>>16
	}
	return uint16(s)
}

func lengthOffset(k kind) int {
	switch k {
	case kindIPv4:
		return 2
	case kindIPv6, kindUDP:
		return 4
	default:
		panic("packet: a length on what has none")
	}
}

func nextOffset(k kind) int {
	switch k {
	case kindIPv4:
		return 9
	case kindIPv6:
		return 6
	case kindExtension:
		return 0
	default:
		panic("packet: a next header on what has none")
	}
}

func checksumOffset(k kind) int {
	switch k {
	case kindIPv4:
		return 10
	case kindTCP:
		return 16
	case kindUDP:
		return 6
	case kindICMP:
		return 2
	default:
		panic("packet: a checksum on what has none")
	}
}
