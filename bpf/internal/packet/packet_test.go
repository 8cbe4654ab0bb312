package packet_test

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/levee-xdp/levee/bpf/internal/packet"
)

var (
	a4, b4 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	a6, b6 = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::2")
)

// TestAgainstGopacket decodes frames and has gopacket write them again, with its own lengths and
// checksums: the bytes stay the same.
func TestAgainstGopacket(t *testing.T) {
	for name, p := range map[string]*packet.Packet{
		"tcp4":    packet.New().IP(a4, b4).TCP(1, 2).Flags(packet.SYN).Payload(11),
		"tcp6":    packet.New().IP(a6, b6).TCP(1, 2).Flags(packet.SYN | packet.ACK).Payload(10),
		"options": packet.New().IP(a4, b4).Options(3).TCP(1, 2).Options(2).Payload(1),
		"udp4":    packet.New().VLAN(7).IP(a4, b4).UDP(1, 2).Payload(33),
		"udp6":    packet.New().SVLAN(5).VLAN(7).IP(a6, b6).HopLimit(3).UDP(1, 2).Payload(32),
		"icmp4":   packet.New().IP(a4, b4).ICMP(8, 0).Payload(31),
		"icmp6":   packet.New().IP(a6, b6).ICMPv6(128, 0).Payload(31),
		"arp":     packet.New().ARP(a4, b4),
		"in ip":   packet.New().IP(a4, b4).IP(a6, b6).IP(a4, b4).UDP(5, 6),
	} {
		frame := p.Bytes()
		decoded := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
		if err := decoded.ErrorLayer(); err != nil {
			t.Errorf("%s: %v\n% x", name, err.Error(), frame)
			continue
		}
		var again []gopacket.SerializableLayer
		var network gopacket.NetworkLayer
		for _, layer := range decoded.Layers() {
			switch l := layer.(type) {
			case *layers.IPv4:
				network = l
			case *layers.IPv6:
				network = l
			case *layers.TCP:
				if err := l.SetNetworkLayerForChecksum(network); err != nil {
					t.Fatal(err)
				}
			case *layers.UDP:
				if err := l.SetNetworkLayerForChecksum(network); err != nil {
					t.Fatal(err)
				}
			case *layers.ICMPv6:
				if err := l.SetNetworkLayerForChecksum(network); err != nil {
					t.Fatal(err)
				}
			}
			s, ok := layer.(gopacket.SerializableLayer)
			if !ok {
				t.Fatalf("%s: %T", name, layer)
			}
			again = append(again, s)
		}
		buffer := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(buffer, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, again...); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		// gopacket pads what is short
		if got := buffer.Bytes(); len(got) < len(frame) || !bytes.Equal(got[:len(frame)], frame) {
			t.Errorf("%s:\nbuilt    % x\ngopacket % x", name, frame, got)
		}
	}
}

func TestSetters(t *testing.T) {
	for _, c := range []struct {
		name   string
		p      *packet.Packet
		offset int
		want   []byte
	}{
		{"version", packet.New().IP(a4, b4).Version(6), 14, []byte{0x65}},
		{"ihl", packet.New().IP(a4, b4).IHL(3).TCP(1, 2), 14, []byte{0x43}},
		{"total length", packet.New().IP(a4, b4).Length(7).TCP(1, 2), 16, []byte{0, 7}},
		{"payload length", packet.New().IP(a6, b6).Length(7).TCP(1, 2), 18, []byte{0, 7}},
		{"fragment", packet.New().IP(a4, b4).Fragment(1480, true).Raw(17), 20, []byte{0x20, 185}},
		{"fragment header", packet.New().IP(a6, b6).Fragment(1480, true).Raw(17), 54, []byte{17, 0, 5, 0xC9}},
		{"fragment announced", packet.New().IP(a6, b6).Fragment(0, false).TCP(1, 2), 20, []byte{44}},
		{"next", packet.New().IP(a6, b6).Next(99).TCP(1, 2), 20, []byte{99}},
		{"type", packet.New().VLAN(1).Type(0x1234).IP(a4, b4), 16, []byte{0x12, 0x34}},
		{"mapped type", packet.New().IP(a6, b6), 12, []byte{0x86, 0xDD}},
		{"udp length", packet.New().IP(a4, b4).UDP(1, 2).Length(9), 38, []byte{0, 9}},
		{"data offset", packet.New().IP(a4, b4).TCP(1, 2).DataOffset(15), 46, []byte{0xF0}},
		{"checksum", packet.New().IP(a4, b4).Checksum(0xABCD).TCP(1, 2), 24, []byte{0xAB, 0xCD}},
		{"extension", packet.New().IP(a6, b6).Extension(packet.AH, 4).TCP(1, 2), 54, []byte{6, 4}},
	} {
		b := c.p.Bytes()
		if !bytes.Equal(b[c.offset:c.offset+len(c.want)], c.want) {
			t.Errorf("%s: % x at %d, want % x", c.name, b[c.offset:c.offset+len(c.want)], c.offset, c.want)
		}
	}
	if n := len(packet.New().IP(a4, b4).TCP(1, 2).Pad(60).Bytes()); n != 60 {
		t.Errorf("padded to %d bytes", n)
	}
	if n := len(packet.New().IP(a4, b4).TCP(1, 2).Truncate(17).Bytes()); n != 17 {
		t.Errorf("cut to %d bytes", n)
	}
	if o := packet.New().VLAN(1).IP(a4, b4).Options(1).TCP(1, 2).Offsets(); o[3] != 42 {
		t.Errorf("offsets %v", o)
	}
}
