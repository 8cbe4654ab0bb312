package protect

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// socket is a TCP socket as the kernel's socket diagnosis tells of it.
type socket struct {
	port  uint16     // the local one
	peer  netip.Addr // the zero address while it listens
	inode uint32
}

// The states of a TCP socket that are asked for, as bits: include/net/tcp_states.h.
const (
	established = 1 << 1
	listening   = 1 << 10
)

// The layout of include/uapi/linux/inet_diag.h: struct inet_diag_req_v2 and struct inet_diag_msg, and
// the two comparisons of a port that a filter may have.
const (
	diagRequest  = 56
	diagMessage  = 72
	diagBytecode = 1 // the attribute with the filter
	portAtLeast  = 2
	portAtMost   = 3
)

// sockets lists TCP sockets in some states, of a local port if that is not 0. The kernel filters: of a
// million connections only those that are asked for are handed over.
func sockets(states uint32, port uint16) ([]socket, error) {
	var out []socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		request := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
		body := make([]byte, diagRequest)
		body[0], body[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(body[4:], states)
		request.AddRawData(body)
		if port != 0 {
			request.AddRawData(nl.NewRtAttr(diagBytecode, portFilter(port)).Serialize())
		}
		messages, err := request.Execute(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY)
		if err != nil {
			return nil, fmt.Errorf("list the TCP sockets: %w", err)
		}
		for _, m := range messages {
			if s, ok := decodeSocket(m); ok {
				out = append(out, s)
			}
		}
	}
	return out, nil
}

// portFilter passes one local port: each step says how many bytes on to go if it holds and if not;
// exactly at the end is yes, behind it no.
func portFilter(port uint16) []byte {
	step := func(b []byte, code, yes uint8, no uint16) []byte {
		return binary.NativeEndian.AppendUint16(append(b, code, yes), no)
	}
	var b []byte
	b = step(b, portAtLeast, 8, 20)
	b = step(b, 0, 0, port)
	b = step(b, portAtMost, 8, 12)
	return step(b, 0, 0, port)
}

func decodeSocket(m []byte) (s socket, ok bool) {
	if len(m) < diagMessage {
		return s, false
	}
	s.port = binary.BigEndian.Uint16(m[4:])
	s.inode = binary.NativeEndian.Uint32(m[68:])
	switch m[0] {
	case unix.AF_INET:
		s.peer = netip.AddrFrom4([4]byte(m[24:28]))
	case unix.AF_INET6:
		s.peer = netip.AddrFrom16([16]byte(m[24:40])).Unmap()
	default:
		return s, false
	}
	return s, true
}
