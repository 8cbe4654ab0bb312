package httpguard

import (
	"net/http"
	"net/netip"
	"strings"
)

// Header is the header in which the proxies in front of a server name the client.
type Header string

// The headers. A server believes one of them: the other one comes from the client as it is.
const (
	NoHeader      Header = ""
	XForwardedFor Header = "X-Forwarded-For"
	Forwarded     Header = "Forwarded" // RFC 7239
)

const (
	maxHops = 32  // that are looked at; a chain that is longer is nobody's
	maxHop  = 256 // bytes of a hop
)

// Client is who sent a request.
type Client struct {
	// Addr is the client's address. It is not valid where a proxy does not say on whose behalf it
	// asks: such a request falls under no limit by address.
	Addr netip.Addr
	// Proxied tells that a trusted proxy stands between. Then packets carry the proxy's address, not
	// the client's.
	Proxied bool
	// Peer is the address at the other end of the connection: the client's own, or a proxy's. It is not
	// valid on a Unix socket.
	Peer netip.Addr
}

// resolver finds out who sent a request.
type resolver struct {
	trusted []netip.Prefix
	header  Header
}

// client finds out who sent a request, and from where it came.
func (v *resolver) client(r *http.Request) Client {
	remote, ok := peer(r.RemoteAddr)
	c := v.on(remote, ok, r)
	c.Peer = remote
	return c
}

// on is the rightmost address that is none of the trusted proxies': what stands to the left of
// it was written by the client itself, or by someone whom nobody vouches for.
func (v *resolver) on(remote netip.Addr, ok bool, r *http.Request) Client {
	if !ok {
		// A Unix socket: who may connect to it is the server's own proxy.
		if v.header == NoHeader {
			return Client{}
		}
	} else if v.header == NoHeader || !v.trusts(remote) {
		return Client{Addr: remote}
	}
	last := Client{Proxied: true}
	lines := r.Header.Values(string(v.header))
	hops := 0
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			var hop string
			hop, rest, more = v.rightmost(rest)
			if hops++; hops > maxHops || len(hop) > maxHop {
				return last
			}
			addr, ok := v.node(hop)
			if !ok {
				return Client{Proxied: true} // unknown, hidden or not well-formed
			}
			if last.Addr = addr; !v.trusts(addr) {
				return last
			}
		}
	}
	return last // all of them are trusted: the request began at one of them
}

func (v *resolver) trusts(addr netip.Addr) bool {
	for _, p := range v.trusted {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// rightmost cuts the last element off a list. Quotes are looked for from the right, too: what a
// client has written to the left, such as a quote that does not end, can't swallow what its proxy
// has added.
func (v *resolver) rightmost(list string) (element, rest string, more bool) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch list[i] {
		case '"':
			if v.header == Forwarded && !escaped(list, i) {
				quoted = !quoted
			}
		case ',':
			if !quoted {
				return list[i+1:], list[:i], true
			}
		}
	}
	return list, "", false
}

// escaped tells whether an odd number of backslashes stands before a place.
func escaped(s string, i int) bool {
	n := 0
	for i > n && s[i-n-1] == '\\' {
		n++
	}
	return n%2 == 1
}

// node reads the address of a hop.
func (v *resolver) node(hop string) (netip.Addr, bool) {
	hop = strings.Trim(hop, " \t")
	if v.header == Forwarded {
		var ok bool
		if hop, ok = forwardedFor(hop); !ok {
			return netip.Addr{}, false
		}
	}
	return address(hop)
}

// forwardedFor is the value of an element's one parameter "for", as RFC 7239 has it in section 4.
func forwardedFor(element string) (string, bool) {
	found := ""
	for element != "" {
		name, rest, ok := strings.Cut(element, "=")
		if !ok {
			return "", false
		}
		value, rest, ok := tokenOrQuoted(rest)
		if !ok {
			return "", false
		}
		if strings.EqualFold(strings.Trim(name, " \t"), "for") {
			if found != "" {
				return "", false
			}
			found = value
		}
		rest = strings.TrimLeft(rest, " \t")
		if rest != "" {
			if rest[0] != ';' {
				return "", false
			}
			rest = rest[1:]
		}
		element = strings.TrimLeft(rest, " \t")
	}
	return found, found != ""
}

// tokenOrQuoted cuts a value off, without its quotes.
func tokenOrQuoted(s string) (value, rest string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, "; \t\"")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], end > 0
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch {
		case s[i] == '"':
			return b.String(), s[i+1:], true
		case s[i] == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(s[i])
		}
	}
	return "", "", false
}

// address reads 192.0.2.1, 192.0.2.1:80, 2001:db8::1, [2001:db8::1] and [2001:db8::1]:80.
func address(s string) (netip.Addr, bool) {
	if bare, ok := strings.CutPrefix(s, "["); ok {
		host, port, ok := strings.Cut(bare, "]")
		if !ok || port != "" && (port[0] != ':' || strings.Trim(port[1:], "0123456789") != "") {
			return netip.Addr{}, false
		}
		s = host
	} else if host, port, ok := strings.Cut(s, ":"); ok && strings.Trim(port, "0123456789") == "" {
		s = host
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// peer is the address at the other end of a connection.
func peer(remote string) (netip.Addr, bool) {
	p, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}, false
	}
	return p.Addr().Unmap().WithZone(""), true
}

// network is what counts as one client: an IPv4 address, an IPv6 /64.
func network(addr netip.Addr) netip.Prefix {
	if addr.Is4() {
		return netip.PrefixFrom(addr, 32)
	}
	return netip.PrefixFrom(addr, 64).Masked()
}
