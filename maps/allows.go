package maps

import (
	"errors"
	"iter"
	"net/netip"
	"sync"

	"github.com/levee-xdp/levee/bpf"
)

// Allow is one prefix that no ban may touch. Of those that cover an address the longest decides
// alone, also when it has expired: an expired one must be deleted to uncover a wider one.
type Allow struct {
	Prefix  netip.Prefix // masked; an IPv4 prefix mapped into IPv6 is an IPv4 prefix
	NoLimit bool         // limits do not touch it, either
	Derived bool         // not set at run time; a mark for who reads the table when the state is lost
	Expires uint64       // ns of CLOCK_MONOTONIC, or bpf.Forever
}

func (a Allow) value() bpf.Allow {
	v := bpf.Allow{Expires: a.Expires}
	if a.NoLimit {
		v.Flags = bpf.AllowNoLimit
	}
	if a.Derived {
		v.Flags |= bpf.AllowDerived
	}
	return v
}

// Allows is the allow list. Its methods may be called at the same time.
type Allows struct {
	mu   sync.Mutex
	trie trie[bpf.Allow]
}

func openAllows(o *opener) *Allows {
	// The blocker is an entry that has always been expired.
	return &Allows{trie: trie[bpf.Allow]{
		m: o.get(bpf.LeveeMapAllows), name: bpf.LeveeMapAllows, setting: "tables.allows",
	}}
}

func (a *Allows) adopt() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, err := a.trie.all()
	return err
}

// Put allows a prefix, or changes its entry. Returns a *FullError if the table has no room.
func (a *Allows) Put(allow Allow) error {
	p, err := normalPrefix(allow.Prefix)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trie.put(p, allow.value())
}

// Delete removes a prefix's entry, and returns whether there was one.
func (a *Allows) Delete(p netip.Prefix) (bool, error) {
	p, err := normalPrefix(p)
	if err != nil {
		return false, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trie.delete(p)
}

// All returns every entry, expired ones too, in no order.
func (a *Allows) All() ([]Allow, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	have, err := a.trie.all()
	if err != nil {
		return nil, err
	}
	all := make([]Allow, 0, len(have))
	for p, v := range have {
		all = append(all, Allow{p, v.Flags&bpf.AllowNoLimit != 0, v.Flags&bpf.AllowDerived != 0, v.Expires})
	}
	return all, nil
}

// Len returns how many entries the kernel's table has.
func (a *Allows) Len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.trie.used
}

// Capacity returns how many entries the kernel's table takes.
func (a *Allows) Capacity() int { return a.trie.room() }

// Sync makes the table equal to a wanted set, as Bans.Sync does: it writes what differs, first what
// is wanted, then what is not. Returns a *FullError if some found no room; the others are in place.
func (a *Allows) Sync(wanted iter.Seq[Allow]) (Changes, error) {
	var changes Changes
	want := make(map[netip.Prefix]bpf.Allow)
	for allow := range wanted {
		p, err := normalPrefix(allow.Prefix)
		if err != nil {
			return changes, err
		}
		want[p] = allow.value()
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	have, err := a.trie.all()
	if err != nil {
		return changes, err
	}
	var left []netip.Prefix
	for p, v := range want {
		old, was := have[p]
		if was && old == v {
			changes.Kept++
			continue
		}
		err := a.trie.put(p, v)
		switch {
		case errors.Is(err, ErrFull):
			left = append(left, p)
		case err != nil:
			return changes, err
		case was:
			changes.Updated++
		default:
			changes.Added++
		}
	}
	for p := range have {
		if _, ok := want[p]; ok {
			continue
		}
		if _, err := a.trie.delete(p); err != nil {
			return changes, err
		}
		changes.Removed++
	}
	var full *FullError
	for _, p := range left {
		err := a.trie.put(p, want[p])
		switch {
		case err == nil:
			changes.Added++
		case !errors.As(err, &full):
			return changes, err
		default:
			changes.Full++
		}
	}
	if changes.Full > 0 {
		full.More = changes.Full - 1
		return changes, full
	}
	return changes, nil
}
