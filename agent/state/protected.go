package state

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"
)

// Protect puts entries that Levee makes for itself in the place of those that it had made before, and
// tells whether anything differs. They are found afresh at every start, so nothing is written. Their
// comments say what each address is to this host.
func (s *Store) Protect(entries []Allow) (changed bool, err error) {
	next := make(map[netip.Prefix]Allow, len(entries))
	for _, a := range entries {
		p, err := Canonical(a.Prefix)
		if err != nil {
			return false, err
		}
		a.Prefix, a.Source = p, FromProtected
		if _, twice := next[p]; !twice {
			next[p] = a
		}
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	before := s.allows.by[FromProtected]
	if maps.EqualFunc(before, next, func(a, b Allow) bool { return a.Comment == b.Comment }) {
		return false, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allows.replace(FromProtected, next)
	return true, nil
}

// Protected returns the entries that Levee has made for itself, in order of prefix.
func (s *Store) Protected() []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.allows.by[FromProtected]), func(a, b Allow) int { return comparePrefix(a.Prefix, b.Prefix) })
}

func newProxies(prefixes []Prefix) (*bart.Table[Prefix], *Error) {
	t := &bart.Table[Prefix]{}
	for i, p := range prefixes {
		c, err := Canonical(p.Prefix)
		if err != nil {
			return nil, AsError(err, CodeInvalid).In(fmt.Sprintf("trusted_proxies[%d]", i))
		}
		t.Insert(c, Prefix{c})
	}
	return t, nil
}

// ProxyOf returns the range of trusted proxies that an address belongs to.
func (s *Store) ProxyOf(a netip.Addr) (netip.Prefix, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.proxies.Lookup(a)
	return p.Prefix, ok
}

// guard refuses a ban that would cut off whom this host needs, and notes whom it leaves alone. What
// lies within an entry is never banned. What has protected addresses within it takes force: they pass
// for as long as they are protected, but an SSH peer, for one, is not for ever.
func (c *change) guard(p *Proposal, brief bool) (notes []string, refused *Error) {
	if p.Origin == OriginKernel {
		return nil, nil
	}
	prefix := p.Prefix
	refuse := func(code Code, format string, args ...any) *Error {
		return &Error{Code: code, Field: "prefix", Value: PrefixString(prefix), Detail: fmt.Sprintf(format, args...)}
	}
	if a, ok := c.allows.covering(p.Prefix, c.now); ok {
		if a.Source == FromProtected {
			return nil, refuse(CodeProtected, "is protected: it is %s; no ban may touch it", a.describe())
		}
		return nil, refuse(CodeRefused, "is allowed by the entry %s (%s), which no ban may touch", PrefixString(a.Prefix), a.describe())
	}
	if err := c.guardProxies(p, refuse); err != nil || p.Prefix.IsSingleIP() {
		return nil, err
	}
	var first *Allow
	within, protected := 0, 0
	for q, a := range c.allows.index.Subnets(p.Prefix) {
		if a.Until() <= c.now {
			continue
		}
		within++
		if own, ok := c.allows.by[FromProtected][q]; ok {
			if protected++; first == nil {
				first = &own
			}
		}
	}
	if protected > 0 && !p.Force && !p.Monitor {
		more := ""
		if protected > 1 {
			more = fmt.Sprintf(" (and %d more)", protected-1)
		}
		return nil, refuse(CodeProtected, "contains %s, which is protected: it is %s%s; ban around it, or use force: it passes while it is protected",
			PrefixString(first.Prefix), first.describe(), more)
	}
	if within > 0 && !brief {
		notes = append(notes, fmt.Sprintf("%d allow %s within %s and still %s", within, plural(within, "entry lies", "entries lie"), p.Prefix,
			plural(within, "passes", "pass")))
	}
	return notes, nil
}

// guardProxies keeps everybody but a person who insists from banning a trusted proxy: its packets are
// those of many clients.
func (c *change) guardProxies(p *Proposal, refuse func(Code, string, ...any) *Error) *Error {
	if p.Monitor || c.proxies.Size() == 0 {
		return nil
	}
	_, proxy, ok := c.proxies.LookupPrefixLPM(p.Prefix)
	if !ok {
		for _, proxy = range c.proxies.Subnets(p.Prefix) {
			ok = true
			break
		}
	}
	const why = "of trusted_proxies: its packets are those of many clients, so block the client where it is seen, at the proxy"
	switch {
	case !ok:
		return nil
	case p.Origin.Kind() != OriginOperator:
		return refuse(CodeConflict, "meets the range %s %s", proxy, why)
	case !p.Force:
		return refuse(CodeRefused, "meets the range %s %s; ban it with force if you mean all of them", proxy, why)
	}
	return nil
}
