package state

import (
	"net/netip"
	"strings"
)

// ParsePrefix reads an address or a prefix as people and programs write them. Host bits are
// masked, an IPv4-mapped IPv6 prefix becomes the IPv4 one; zones, leading zeros and anything else
// that netip refuses is an Error that names the value.
func ParsePrefix(s string) (netip.Prefix, error) {
	address, length, hasLength := strings.Cut(s, "/")
	if hasLength {
		if p, err := netip.ParsePrefix(s); err == nil {
			return Canonical(p)
		}
	}
	addr, err := netip.ParseAddr(address)
	if err != nil {
		if s == "" {
			return netip.Prefix{}, invalid("prefix", s, "is empty; give an address such as 203.0.113.7, or a prefix such as 203.0.113.0/24")
		}
		if withoutZeros(address) != address {
			return netip.Prefix{}, invalid("prefix", s, "has leading zeros, which some read as octal; write %s", withoutZeros(s))
		}
		return netip.Prefix{}, invalid("prefix", s, "is neither an address nor a prefix; write 203.0.113.7, 203.0.113.0/24 or 2001:db8::/32")
	}
	if addr.Zone() != "" {
		return netip.Prefix{}, invalid("prefix", s, "has a zone; packets carry none, write %s", addr.WithZone(""))
	}
	if !hasLength {
		addr = addr.Unmap()
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.Prefix{}, invalid("prefix", s, "its length %q is not a number from 0 to %d", length, addr.BitLen())
}

// ParseAddr reads an address, with ParsePrefix's rules.
func ParseAddr(s string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		return netip.Addr{}, invalid("address", s, "is not an address; write 203.0.113.7 or 2001:db8::1")
	case addr.Zone() != "":
		return netip.Addr{}, invalid("address", s, "has a zone; packets carry none, write %s", addr.WithZone(""))
	}
	return addr.Unmap(), nil
}

// Canonical returns a prefix with its host bits masked, and as IPv4 where it is IPv4 mapped into
// IPv6.
func Canonical(p netip.Prefix) (netip.Prefix, error) {
	if !p.IsValid() {
		return netip.Prefix{}, invalid("prefix", "", "is not a prefix")
	}
	if p.Addr().Zone() != "" {
		return netip.Prefix{}, invalid("prefix", p.String(), "has a zone; packets carry none")
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, invalid("prefix", p.String(), "is IPv4 mapped into IPv6, but wider than all of IPv4; write the IPv4 prefix")
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// Widest is the shortest prefix length of each family that can be banned without force.
const (
	Widest4 = 8
	Widest6 = 19
)

// Wide tells whether a prefix is so wide that banning it needs force.
func Wide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < Widest4
	}
	return p.Bits() < Widest6
}

// PrefixString writes a single address without its length, and anything else as a prefix.
func PrefixString(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// withoutZeros drops the zeros that lead a decimal part of something like an IPv4 prefix.
func withoutZeros(s string) string {
	if strings.Contains(s, ":") {
		return s
	}
	address, length, hasLength := strings.Cut(s, "/")
	parts := strings.Split(address, ".")
	for i, p := range parts {
		if t := strings.TrimLeft(p, "0"); t != "" {
			parts[i] = t
		} else if p != "" {
			parts[i] = "0"
		}
	}
	out := strings.Join(parts, ".")
	if hasLength {
		out += "/" + length
	}
	return out
}
