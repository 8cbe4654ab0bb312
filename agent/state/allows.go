package state

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/gaissmai/bart"
	"go.etcd.io/bbolt"
)

// allowTable is the allow entries by where they were set, and an index over all of them.
type allowTable struct {
	by    map[Source]map[netip.Prefix]Allow
	index *bart.Table[Allow] // what is in force
}

// allowSources are those that can set an entry, the one that speaks first in front.
var allowSources = [...]Source{FromAPI, FromConfig, FromProtected}

func newAllowTable() allowTable {
	t := allowTable{by: map[Source]map[netip.Prefix]Allow{}, index: &bart.Table[Allow]{}}
	for _, s := range allowSources {
		t.by[s] = map[netip.Prefix]Allow{}
	}
	return t
}

// refresh brings a prefix's place in the index up to date: entries of several sources for one
// prefix are one, which exempts from limits if one of them does, and lasts as long as the longest.
func (t *allowTable) refresh(p netip.Prefix) {
	var whole Allow
	found := false
	for _, s := range allowSources {
		a, ok := t.by[s][p]
		switch {
		case !ok:
		case !found:
			whole, found = a, true
		default:
			whole.NoLimits = whole.NoLimits || a.NoLimits
			if a.Until() > whole.Until() {
				whole.Expires, whole.until = a.Expires, a.until
			}
		}
	}
	if found {
		t.index.Insert(p, whole)
	} else {
		t.index.Delete(p)
	}
}

// replace puts entries in the place of all that a source has set.
func (t *allowTable) replace(source Source, next map[netip.Prefix]Allow) {
	before := t.by[source]
	t.by[source] = next
	for p := range before {
		t.refresh(p)
	}
	for p := range next {
		t.refresh(p)
	}
}

// covering returns the most specific entry that contains a prefix and has not ended.
func (t *allowTable) covering(p netip.Prefix, now uint64) (Allow, bool) {
	if !t.index.Contains(p.Addr()) { // as of nearly all
		return Allow{}, false
	}
	_, longest, ok := t.index.LookupPrefixLPM(p)
	if !ok || longest.Until() > now {
		return longest, ok
	}
	for _, a := range t.index.Supernets(p) {
		if a.Until() > now {
			return a, true
		}
	}
	return Allow{}, false
}

// touching returns the entries in force that contain a prefix or lie within it, the widest first.
func (t *allowTable) touching(p netip.Prefix, now uint64) []Allow {
	found := []Allow{}
	for _, a := range t.index.Subnets(p) {
		if a.Until() > now {
			found = append(found, a)
		}
	}
	for q, a := range t.index.Supernets(p) {
		if q != p && a.Until() > now {
			found = append(found, a)
		}
	}
	slices.SortFunc(found, func(a, b Allow) int {
		return cmp.Or(cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()), a.Prefix.Addr().Compare(b.Prefix.Addr()))
	})
	return found
}

func (a *Allow) describe() string {
	switch {
	case a.Source == FromProtected:
		return a.Comment
	case a.Source == FromConfig && a.Comment != "":
		return fmt.Sprintf("%q in the configuration file", a.Comment)
	case a.Source == FromConfig:
		return "in the configuration file"
	case a.Comment != "":
		return fmt.Sprintf("%q, set by %s", a.Comment, a.Actor)
	}
	return "set by " + a.Actor
}

// AllowOutcome is the answer to one allow entry.
type AllowOutcome struct {
	Prefix netip.Prefix
	Status Status
	Allow  *Allow
	Notes  []string
	Error  *Error

	before *Allow
}

// AllowProposal asks for one allow entry, or with Remove for its end.
type AllowProposal struct {
	AllowSpec
	Actor  string
	For    time.Duration // 0: until it is taken back
	Remove bool
}

// ProposeAllows makes and takes back allow entries of the run time; each proposal gets its outcome.
func (s *Store) ProposeAllows(proposals []AllowProposal) ([]AllowOutcome, error) {
	const most = 16 // to look through all claims for
	out, err := s.proposeAllows(proposals)
	for i := range out {
		if err == nil && out[i].Status == StatusAdded && len(out) <= most {
			if n := s.overruled(out[i].Prefix); n > 0 {
				out[i].Notes = append(out[i].Notes, fmt.Sprintf("it overrules %d %s", n, plural(n, "ban", "bans")))
			}
		}
	}
	return out, err
}

func (s *Store) proposeAllows(proposals []AllowProposal) ([]AllowOutcome, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	out := make([]AllowOutcome, len(proposals))
	next := maps.Clone(s.allows.by[FromAPI])
	for i := range proposals {
		out[i] = s.proposeAllow(proposals[i], next)
	}
	return out, s.saveAllows(out, next)
}

// JudgeAllows tells what would come of proposals. Nothing is changed.
func (s *Store) JudgeAllows(proposals []AllowProposal) []AllowOutcome {
	s.writer.Lock()
	defer s.writer.Unlock()
	out := make([]AllowOutcome, len(proposals))
	next := maps.Clone(s.allows.by[FromAPI])
	for i := range proposals {
		out[i] = s.proposeAllow(proposals[i], next)
	}
	return out
}

func (s *Store) proposeAllow(p AllowProposal, next map[netip.Prefix]Allow) AllowOutcome {
	err := p.Validate()
	if err == nil && (p.For < 0 || p.For > Longest) {
		err = invalid("for", Duration(p.For).String(), "is not within 0 and 100 years")
	}
	if err != nil {
		return AllowOutcome{Prefix: p.Prefix.Prefix, Status: StatusRefused, Error: err}
	}
	prefix := p.Prefix.Prefix
	out := AllowOutcome{Prefix: prefix}
	before, had := next[prefix]
	if had {
		out.before = &before
	}
	if p.Remove {
		out.Status = StatusRemoved
		if had {
			out.Allow = &before
			delete(next, prefix)
			return out
		}
		out.Status = StatusRefused
		out.Error = &Error{Code: CodeNotFound, Field: "prefix", Value: PrefixString(prefix), Detail: "is not on the allow list"}
		if _, ok := s.allows.by[FromConfig][prefix]; ok {
			out.Error.Code = CodeConflict
			out.Error.Detail = "is allowed by the configuration file: take it out there and reload"
		} else if a, ok := s.allows.by[FromProtected][prefix]; ok {
			out.Error.Code = CodeConflict
			out.Error.Detail = "is protected by Levee itself: " + a.Comment + "; the setting protect says what is"
		} else if wide, ok := s.allows.covering(prefix, s.clock.Monotonic()); ok {
			out.Error.Detail += " itself; it lies within " + PrefixString(wide.Prefix)
		}
		return out
	}
	a := Allow{Prefix: prefix, NoLimits: p.NoLimits, Comment: p.Comment, Source: FromAPI, Actor: p.Actor,
		Created: s.clock.Now().UTC()}
	if p.For > 0 {
		a.until, a.boot = s.clock.Monotonic()+uint64(p.For), s.boots[s.boot].id
		a.Expires = s.wallTime(a.until)
	}
	out.Allow = &a
	switch {
	case had && before.NoLimits == a.NoLimits && before.Comment == a.Comment && before.until == 0 && a.until == 0:
		out.Status, out.Allow = StatusUnchanged, &before
		return out
	case had:
		out.Status = StatusChanged
	default:
		out.Status = StatusAdded
	}
	next[prefix] = a
	return out
}

func (s *Store) saveAllows(out []AllowOutcome, next map[netip.Prefix]Allow) error {
	failed := s.write("write the allow list", func(tx *bbolt.Tx) error {
		b := tx.Bucket(bucketAllows)
		for i := range out {
			a, ok := next[out[i].Prefix]
			if !ok {
				if err := b.Delete([]byte(out[i].Prefix.String())); err != nil {
					return err
				}
				continue
			}
			v, err := json.Marshal(savedAllow{a, a.boot, a.until})
			if err != nil {
				return err
			}
			if err := b.Put([]byte(a.Prefix.String()), v); err != nil {
				return err
			}
		}
		return nil
	})
	if failed != nil {
		return failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allows.by[FromAPI] = next
	for i := range out {
		s.allows.refresh(out[i].Prefix)
	}
	return nil
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// overruled counts the banned prefixes that an allow entry stands against.
func (s *Store) overruled(p netip.Prefix) (n int) {
	k := keyOf(p)
	s.mu.RLock()
	for range s.covering(k) {
		n++
	}
	s.mu.RUnlock()
	if !p.IsSingleIP() {
		for _, r := range s.inSteps() {
			if r.bits > k.bits && r.head() && k.contains(r.key()) {
				n++
			}
		}
	}
	return n
}

// RevertAllows puts back what was before these outcomes, in this order, unless something else was said since.
func (s *Store) RevertAllows(outcomes []AllowOutcome) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	next := maps.Clone(s.allows.by[FromAPI])
	for i := range slices.Backward(outcomes) { // one prefix may stand there twice
		o := &outcomes[i]
		now, there := next[o.Prefix]
		switch {
		case o.Status == StatusRefused || o.Status == StatusUnchanged:
		case there == (o.Status == StatusRemoved) || there && now != *o.Allow:
		case o.before != nil:
			next[o.Prefix] = *o.before
		default:
			delete(next, o.Prefix)
		}
	}
	return s.saveAllows(slices.Clone(outcomes), next)
}

// Allows returns the allow entries of all sources, in order of prefix.
func (s *Store) Allows() []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Allow
	for _, by := range s.allows.by {
		out = slices.AppendSeq(out, maps.Values(by))
	}
	slices.SortFunc(out, func(a, b Allow) int {
		if c := comparePrefix(a.Prefix, b.Prefix); c != 0 {
			return c
		}
		return cmp.Compare(a.Source, b.Source)
	})
	return out
}

// EffectiveAllows returns one entry a prefix: what the kernel is to know. There the most specific
// entry decides alone, also when it has ended. So none ends before one that contains it, and one that
// Levee made for itself takes no exemption from limits away.
func (s *Store) EffectiveAllows() []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Allow, 0, s.allows.index.Size())
	for p, a := range s.allows.index.All() {
		for _, wide := range s.allows.index.Supernets(p) {
			if wide.Until() > a.Until() {
				a.Expires, a.until = wide.Expires, wide.until
			}
			if a.Source == FromProtected && wide.NoLimits {
				a.NoLimits = true
			}
		}
		out = append(out, a)
	}
	return out
}

// AllowsFor returns the entries that contain a prefix and have not ended, the most specific first.
func (s *Store) AllowsFor(p netip.Prefix) []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Allow
	now := s.clock.Monotonic()
	for _, a := range s.allows.index.Supernets(p) {
		if a.Until() > now {
			out = append(out, a)
		}
	}
	return out
}
