package main

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
)

// kind is what a flood consists of.
type kind string

// The kinds of packets. Each is one that the server's kernel has to work for.
const (
	kindACK       kind = "ack"       // a TCP segment of no connection: answered with a reset
	kindSYN       kind = "syn"       // the opening of a TCP connection that is never completed
	kindUDP       kind = "udp"       // a datagram to a port where nobody listens: an ICMP error
	kindICMP      kind = "icmp"      // an echo request: answered
	kindFragments kind = "fragments" // a datagram in two parts: kept, waited for and put together
)

const (
	ethLength  = 14
	ip4Length  = 20
	ip6Length  = 40
	serverPort = 80
	closedPort = 9

	etherIPv4, etherIPv6           = 0x0800, 0x86dd
	protoICMP, protoTCP            = 1, 6
	protoUDP, protoICMPv6          = 17, 58
	protoFragment                  = 44
	echoRequest4, echoRequest6     = 8, 128
	flagSYN, flagACK               = 0x02, 0x10
	moreFragments4, moreFragments6 = 0x2000, 0x0001
	checksumTCP, checksumUDP       = 16, 6
	checksumICMP, headerOfFrags    = 2, 8
)

// frame is the pattern of a flood's packets: what stays the same in all of them, and where the rest
// goes. Source address, source port, part and checksums are 0.
type frame struct {
	bytes        []byte
	portOffset   int       // 0: none
	partOffset   int       // 0: none
	parts        [2]uint16 // in network order
	checkOffset  int       // 0: none
	pseudo       bool
	headerSum    uint32
	transportSum uint32
}

// newFrame builds the pattern for packets of a kind to the server.
func newFrame(k kind, version int, from, to net.HardwareAddr) (frame, error) {
	f := frame{pseudo: true}
	transport, protocol := f.transport(k, version)
	if transport == nil {
		return frame{}, fmt.Errorf("unknown kind of flood %q", k)
	}
	f.bytes = append(append(f.bytes, to...), from...)
	if version == 4 {
		f.network4(k, transport, protocol)
	} else {
		f.network6(k, transport, protocol)
	}
	return f, nil
}

// transport makes the packet after its IP header. Offsets are still counted from its start.
func (f *frame) transport(k kind, version int) (b []byte, protocol byte) {
	switch k {
	case kindACK, kindSYN:
		b = make([]byte, 20, 40)
		b[12], b[13] = 5<<4, flagACK
		if k == kindSYN {
			// MSS 1460, SACK permitted, timestamps, window scale 7: as Linux opens a connection.
			b = append(b, 2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7)
			b[12], b[13] = 10<<4, flagSYN
		}
		binary.BigEndian.PutUint16(b[2:], serverPort)
		binary.BigEndian.PutUint32(b[4:], 0x5eed5eed)
		binary.BigEndian.PutUint16(b[14:], 64240)
		f.checkOffset, protocol = checksumTCP, protoTCP
	case kindUDP, kindFragments:
		b = make([]byte, 8+32)
		binary.BigEndian.PutUint16(b[2:], closedPort)
		binary.BigEndian.PutUint16(b[4:], uint16(len(b)))
		f.checkOffset, protocol = checksumUDP, protoUDP
		if k == kindFragments { // two such parts are the datagram; without a checksum
			binary.BigEndian.PutUint16(b[4:], uint16(2*len(b)))
			f.checkOffset = 0
		}
	case kindICMP:
		b = make([]byte, 8+32)
		b[0], protocol = echoRequest4, protoICMP
		if version == 6 {
			b[0], protocol = echoRequest6, protoICMPv6
		}
		f.checkOffset, f.pseudo = checksumICMP, version == 6
		binary.BigEndian.PutUint16(b[6:], 1)
		return b, protocol
	default:
		return nil, 0
	}
	return b, protocol
}

func (f *frame) network4(k kind, transport []byte, protocol byte) {
	ip := make([]byte, ip4Length)
	ip[0], ip[8], ip[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(transport)))
	if k == kindFragments {
		f.partOffset = ethLength + 6
		f.parts = [2]uint16{bits.ReverseBytes16(moreFragments4), bits.ReverseBytes16(uint16(len(transport) / 8))}
	}
	copy(ip[16:], serverAddrs.four.AsSlice())
	f.headerSum = sum(0, ip)
	f.transportSum = f.sumTransport(transport, serverAddrs.four, protocol)
	f.bytes = binary.BigEndian.AppendUint16(f.bytes, etherIPv4)
	f.bytes = append(append(f.bytes, ip...), transport...)
	f.place(k, ethLength+ip4Length)
}

func (f *frame) network6(k kind, transport []byte, protocol byte) {
	f.transportSum = f.sumTransport(transport, serverAddrs.six, protocol)
	ip := make([]byte, ip6Length)
	ip[0], ip[6], ip[7] = 6<<4, protocol, 64
	start := ethLength + ip6Length
	if k == kindFragments {
		ip[6] = protoFragment
		f.partOffset = start + 2
		f.parts = [2]uint16{bits.ReverseBytes16(moreFragments6), bits.ReverseBytes16(uint16(len(transport)))}
		transport = append([]byte{protocol, 0, 0, 0, 0, 0, 0, 1}, transport...)
		start += headerOfFrags
	}
	binary.BigEndian.PutUint16(ip[4:], uint16(len(transport)))
	copy(ip[24:], serverAddrs.six.AsSlice())
	f.bytes = binary.BigEndian.AppendUint16(f.bytes, etherIPv6)
	f.bytes = append(append(f.bytes, ip...), transport...)
	f.place(k, start)
}

// place turns the transport's offsets into those of the frame.
func (f *frame) place(k kind, start int) {
	if f.checkOffset != 0 {
		f.checkOffset += start
	}
	if k != kindICMP && k != kindFragments {
		f.portOffset = start
	}
}

func (f *frame) sumTransport(transport []byte, to netip.Addr, protocol byte) uint32 {
	s := sum(0, transport)
	if f.pseudo {
		s = sum(s, to.AsSlice())
		s = sum(s, []byte{0, protocol})
		s = sum(s, binary.BigEndian.AppendUint16(nil, uint16(len(transport))))
	}
	return s
}

// sum adds up 16-bit words as the Internet checksum does (RFC 1071), in the byte order of a
// little-endian host: the sum's bytes are then in network order when they are stored.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.LittleEndian.Uint16(b))
	}
	if len(b) == 1 {
		s += uint32(b[0])
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return s
}
