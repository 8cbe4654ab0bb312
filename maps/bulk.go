package maps

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"

	"github.com/gaissmai/bart"
)

// bulk puts many bans under the lock.
type bulk struct {
	bans    *Bans
	changes Changes
	left    []Ban // found no room

	// What would stop enforcing waits until all that enforces is in place, which may take over.
	postponed map[netip.Prefix]Ban

	wrong  error // the first that was wrong
	wrongs int
}

// load puts a sequence of bans.
func (l *bulk) load(bans iter.Seq[Ban]) {
	some := newLot(l.bans, func(_ int, ban *Ban, at slots4) { l.add(ban, at) })
	for ban := range bans {
		if err := some.add(0, &ban); err != nil {
			l.wrongs++
			if l.wrong == nil {
				l.wrong = err
			}
		}
	}
	some.flush()
}

// postpone tells whether a ban has to wait: it enforces in the table and would not do so any more.
// Until then it is put as it stands, so that it counts as wanted.
func (l *bulk) postpone(ban *Ban) bool {
	if len(l.postponed) > 0 {
		delete(l.postponed, ban.Prefix) // of a prefix that occurs twice, the last counts
	}
	if !ban.Monitor && lived(ban.Expires) {
		return false
	}
	old, ok := l.bans.get(ban.Prefix)
	if !ok || old.monitor || !lived(old.expires) {
		return false
	}
	if _, ok := l.bans.put(&Ban{Prefix: ban.Prefix, List: old.list, Expires: old.expires}, nil); !ok {
		return false
	}
	if l.postponed == nil {
		l.postponed = make(map[netip.Prefix]Ban)
	}
	l.postponed[ban.Prefix] = *ban
	return true
}

// release puts what was postponed.
func (l *bulk) release() {
	for _, ban := range l.postponed {
		l.put(&ban, nil)
	}
	l.postponed = nil
}

// again puts those that found no room.
func (l *bulk) again() {
	left := l.left
	l.left = nil
	for i := range left {
		l.add(&left[i], nil)
	}
}

// lacking has the prefixes of those that found no room.
func (l *bulk) lacking() *bart.Lite {
	prefixes := new(bart.Lite)
	for i := range l.left {
		prefixes.Insert(l.left[i].Prefix)
	}
	return prefixes
}

// sweep removes what is not wanted, but for what has addresses in common with the prefixes spared, if any.
// It tells whether there was any.
func (l *bulk) sweep(spared *bart.Lite) bool {
	goes := func(p netip.Prefix) bool { return spared == nil || !spared.OverlapsPrefix(p) }
	removed := l.bans.v4.sweep(goes) + l.bans.v6.sweep(goes)
	l.changes.Removed += removed
	return removed > 0
}

func (l *bulk) add(ban *Ban, at slots4) {
	if !l.postpone(ban) {
		l.put(ban, at)
	}
}

// put puts a ban, and counts what came of it.
func (l *bulk) put(ban *Ban, at slots4) {
	what, ok := l.bans.put(ban, at)
	if !ok {
		l.left = append(l.left, *ban)
		return
	}
	switch what {
	case added:
		l.changes.Added++
	case updated:
		l.changes.Updated++
	case repaired:
		l.changes.Repaired++
	case kept:
		l.changes.Kept++
	}
}

func (l *bulk) err() error {
	var errs []error
	if len(l.left) > 0 {
		full := l.bans.full(l.left[0].Prefix)
		full.More = len(l.left) - 1
		errs = append(errs, full)
	}
	if l.wrong != nil {
		if l.wrongs > 1 {
			l.wrong = fmt.Errorf("%w, and %d more", l.wrong, l.wrongs-1)
		}
		errs = append(errs, l.wrong)
	}
	return errors.Join(errs...)
}
