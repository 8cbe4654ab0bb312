package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// trie is a longest-prefix map of the kernel, in which both families share one space: IPv4 stands
// at ::ffff:0:0/96. An IPv6 prefix that contains that, as ::/0 does, would speak for IPv4 as well;
// so the first of those brings a blocker with it, an entry for 0.0.0.0/0 that says nothing.
type trie[V comparable] struct {
	m       *ebpf.Map
	name    string
	setting string // the size to raise, if that is a setting
	blocker V
	used    int // entries, the blocker too
}

var (
	all4    = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	mapped4 = netip.MustParseAddr("::ffff:0.0.0.0")
)

// room is one less than the map takes: kernels before 6.13 need a free entry to replace another.
func (t *trie[V]) room() int { return int(t.m.MaxEntries()) - 1 }

// put sets a prefix's value. A packet sees the old one or the new one.
func (t *trie[V]) put(p netip.Prefix, v V) error {
	if p.Addr().Is6() && p.Contains(mapped4) {
		err := t.create(all4, t.blocker)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			return err
		}
	}
	key := trieKey(p)
	err := t.m.Update(&key, &v, ebpf.UpdateExist)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return t.create(p, v)
	}
	return t.wrap("put", p, err)
}

func (t *trie[V]) create(p netip.Prefix, v V) error {
	if t.used >= t.room() {
		return &FullError{Prefix: p.String(), Table: t.name, Used: t.used, Slots: t.room(),
			Setting: t.setting}
	}
	key := trieKey(p)
	err := t.m.Update(&key, &v, ebpf.UpdateNoExist)
	if err == nil {
		t.used++
	}
	return t.wrap("put", p, err)
}

// delete removes a prefix, and returns whether it was there.
func (t *trie[V]) delete(p netip.Prefix) (bool, error) {
	key := trieKey(p)
	if p == all4 {
		// An IPv6 prefix that contains it may be there: it becomes the blocker.
		err := t.m.Update(&key, &t.blocker, ebpf.UpdateExist)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return false, nil
		}
		return err == nil, t.wrap("delete", p, err)
	}
	err := t.m.Delete(&key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err == nil {
		t.used--
	}
	return err == nil, t.wrap("delete", p, err)
}

// all reads every entry but the blocker, and counts them anew.
func (t *trie[V]) all() (map[netip.Prefix]V, error) {
	all := make(map[netip.Prefix]V)
	n := 0
	var key bpf.PrefixKey
	var v V
	it := t.m.Iterate()
	for it.Next(&key, &v) {
		n++
		if p := triePrefix(key); p != all4 || v != t.blocker {
			all[p] = v
		}
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.name, err)
	}
	t.used = n
	return all, nil
}

func (t *trie[V]) wrap(what string, p netip.Prefix, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s in %s: %w", what, p, t.name, err)
}

func trieKey(p netip.Prefix) bpf.PrefixKey {
	length := p.Bits()
	if p.Addr().Is4() {
		length += 96
	}
	return bpf.PrefixKey{Length: uint32(length), Addr: p.Addr().As16()}
}

func triePrefix(key bpf.PrefixKey) netip.Prefix {
	addr, length := netip.AddrFrom16(key.Addr), int(key.Length)
	if length >= 96 && addr.Is4In6() {
		addr, length = addr.Unmap(), length-96
	}
	return netip.PrefixFrom(addr, length)
}
