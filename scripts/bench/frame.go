package main

import "encoding/binary"

const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86DD
	protoUDP  = 17

	frameLength = 64
)

// newFrame gives a UDP packet of 64 bytes whose source is for the wrapper to fill in, and the
// Internet checksum (RFC 1071) of its IPv4 header so far, not inverted.
func newFrame(v6 bool) (frame []byte, headerSum uint32) {
	f := make([]byte, frameLength)
	copy(f, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	ip, start := f[14:], 14+20
	if v6 {
		start = 14 + 40
		binary.BigEndian.PutUint16(f[12:], etherIPv6)
		ip[0], ip[6], ip[7] = 6<<4, protoUDP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(f)-start))
		copy(ip[24:], []byte{0x20, 1, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	} else {
		binary.BigEndian.PutUint16(f[12:], etherIPv4)
		ip[0], ip[8], ip[9] = 0x45, 64, protoUDP
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
		copy(ip[16:], []byte{192, 0, 2, 1})
		for i := 0; i < 20; i += 2 {
			headerSum += uint32(binary.LittleEndian.Uint16(ip[i:]))
		}
	}
	udp := f[start:]
	binary.BigEndian.PutUint16(udp, 40000)
	binary.BigEndian.PutUint16(udp[2:], 9)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	return f, headerSum
}
