package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
	"go.etcd.io/bbolt"
)

// allowTable is the allow entries by where they were set, and an index over all of them.
type allowTable struct {
	by    map[Source]map[netip.Prefix]Allow
	index *bart.Table[Allow] // what is in force
}

func newAllowTable() allowTable {
	return allowTable{
		by:    map[Source]map[netip.Prefix]Allow{FromConfig: {}, FromAPI: {}},
		index: &bart.Table[Allow]{},
	}
}

// refresh brings a prefix's place in the index up to date: entries of several sources for one
// prefix are one, which exempts from limits if one of them does.
func (t *allowTable) refresh(p netip.Prefix) {
	api, isAPI := t.by[FromAPI][p]
	config, isConfig := t.by[FromConfig][p]
	switch {
	case isAPI && isConfig:
		api.NoLimits = api.NoLimits || config.NoLimits
		t.index.Insert(p, api)
	case isAPI:
		t.index.Insert(p, api)
	case isConfig:
		t.index.Insert(p, config)
	default:
		t.index.Delete(p)
	}
}

// covering returns the most specific entry that contains a prefix.
func (t *allowTable) covering(p netip.Prefix) (Allow, bool) {
	_, a, ok := t.index.LookupPrefixLPM(p)
	return a, ok
}

// within counts the entries that lie within a prefix.
func (t *allowTable) within(p netip.Prefix) (n int) {
	if p.IsSingleIP() {
		return 0
	}
	for range t.index.Subnets(p) {
		n++
	}
	return n
}

func (a *Allow) describe() string {
	switch {
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
	Remove bool
}

// ProposeAllows makes and takes back allow entries of the run time; each proposal gets its outcome.
func (s *Store) ProposeAllows(proposals []AllowProposal) ([]AllowOutcome, error) {
	s.writer.Lock()
	defer s.writer.Unlock()
	out := make([]AllowOutcome, len(proposals))
	next := maps.Clone(s.allows.by[FromAPI])
	for i := range proposals {
		out[i] = s.proposeAllow(proposals[i], next)
	}
	return out, s.saveAllows(out, next)
}

func (s *Store) proposeAllow(p AllowProposal, next map[netip.Prefix]Allow) AllowOutcome {
	if err := p.Validate(); err != nil {
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
		} else if wide, ok := s.allows.covering(prefix); ok {
			out.Error.Detail += " itself; it lies within " + PrefixString(wide.Prefix)
		}
		return out
	}
	a := Allow{Prefix: prefix, NoLimits: p.NoLimits, Comment: p.Comment, Source: FromAPI, Actor: p.Actor,
		Created: s.clock.Now().UTC()}
	out.Allow = &a
	switch {
	case had && before.NoLimits == a.NoLimits && before.Comment == a.Comment:
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
			v, err := json.Marshal(a)
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
		if out[i].Status == StatusAdded && len(out) <= 16 {
			if n := s.overruled(out[i].Prefix); n > 0 {
				out[i].Notes = append(out[i].Notes, fmt.Sprintf("it overrules %d %s", n, plural(n, "ban", "bans")))
			}
		}
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
	for range s.covering(k) {
		n++
	}
	if !p.IsSingleIP() {
		for slot, r := range s.all(1, s.used) {
			if r.key.bits > k.bits && k.contains(r.key) && s.heads[r.key] == slot {
				n++
			}
		}
	}
	return n
}

// RevertAllows puts back what was before these outcomes.
func (s *Store) RevertAllows(outcomes []AllowOutcome) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	next := maps.Clone(s.allows.by[FromAPI])
	for i := range outcomes {
		o := &outcomes[i]
		switch {
		case o.Status == StatusRefused || o.Status == StatusUnchanged:
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
		if a.Source < b.Source {
			return -1
		}
		return 1
	})
	return out
}

// EffectiveAllows returns one entry a prefix: what the kernel is to know.
func (s *Store) EffectiveAllows() []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Allow, 0, s.allows.index.Size())
	for _, a := range s.allows.index.All() {
		out = append(out, a)
	}
	return out
}

// AllowsFor returns the entries that contain a prefix, the most specific first.
func (s *Store) AllowsFor(p netip.Prefix) []Allow {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Allow
	for _, a := range s.allows.index.Supernets(p) {
		out = append(out, a)
	}
	return out
}

// limitTable is the limits by where they were set, and the numbers by which the kernel knows them.
type limitTable struct {
	config  map[string]LimitSpec
	api     map[string]savedLimit
	numbers map[string]uint8 // of every limit that was ever there, until another needs it
}

type savedLimit struct {
	Actor string    `json:"actor,omitempty"`
	Spec  LimitSpec `json:"spec"`
}

func newLimitTable() limitTable {
	return limitTable{config: map[string]LimitSpec{}, api: map[string]savedLimit{}, numbers: map[string]uint8{DefaultLimit: 0}}
}

// specs is what is in force by name: what was set at run time goes before the file.
func (t *limitTable) specs() map[string]LimitSpec {
	out := map[string]LimitSpec{DefaultLimit: {}}
	maps.Copy(out, t.config)
	for name, l := range t.api {
		out[name] = l.Spec
	}
	return out
}

// number gives every limit that is in force a number, keeping those that have one.
func (t *limitTable) number() *Error {
	specs := t.specs()
	taken := map[uint8]string{}
	for name, n := range t.numbers {
		taken[n] = name
	}
	for _, name := range slices.Sorted(maps.Keys(specs)) {
		if _, ok := t.numbers[name]; ok {
			continue
		}
		free := 0
		for n := 1; n < 256 && free == 0; n++ {
			if taken[uint8(n)] == "" {
				free = n
			}
		}
		for n := 1; n < 256 && free == 0; n++ {
			if _, used := specs[taken[uint8(n)]]; !used {
				free = n
				delete(t.numbers, taken[uint8(n)])
			}
		}
		if free == 0 {
			return &Error{Code: CodeFull, Field: "limits", Value: name, Detail: "would be one too many: the kernel knows 256 limits"}
		}
		t.numbers[name], taken[uint8(free)] = uint8(free), name
	}
	return nil
}

func (t *limitTable) limit(name string) (Limit, bool) {
	l := Limit{Name: name, Number: t.numbers[name]}
	if saved, ok := t.api[name]; ok {
		l.Source, l.Actor, l.LimitSpec = FromAPI, saved.Actor, saved.Spec
		return l, true
	}
	if spec, ok := t.config[name]; ok {
		l.Source, l.LimitSpec = FromConfig, spec
		return l, true
	}
	l.Source = FromDefault
	return l, name == DefaultLimit
}

// Limit returns a limit that is in force.
func (s *Store) Limit(name string) (Limit, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.limits.limit(name)
}

// Limits returns the limits that are in force, in order of their names, the default first.
func (s *Store) Limits() []Limit {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []Limit
	for name := range s.limits.specs() {
		l, _ := s.limits.limit(name)
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b Limit) int {
		switch {
		case a.Name == DefaultLimit:
			return -1
		case b.Name == DefaultLimit:
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// SetLimit makes or replaces a limit of the run time. It returns what was in force before, if
// anything was set at run time.
func (s *Store) SetLimit(name string, spec LimitSpec, actor string) (Limit, *LimitSpec, error) {
	if err := spec.Validate(name); err != nil {
		return Limit{}, nil, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	next := s.cloneLimits()
	var before *LimitSpec
	if l, ok := next.api[name]; ok {
		before = &l.Spec
	}
	next.api[name] = savedLimit{actor, spec}
	if err := s.save(next, s.interfaces, name); err != nil {
		return Limit{}, nil, err
	}
	l, _ := next.limit(name)
	return l, before, nil
}

// RemoveLimit takes back a limit of the run time. What the file says of that name is in force again.
func (s *Store) RemoveLimit(name string) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	if _, ok := s.limits.api[name]; !ok {
		if _, ok := s.limits.config[name]; ok {
			return &Error{Code: CodeConflict, Field: "name", Value: name, Detail: "is set in the configuration file: take it out there and reload"}
		}
		if name == DefaultLimit {
			return &Error{Code: CodeNotFound, Field: "name", Value: name, Detail: "was not set; without thresholds it only counts sources"}
		}
		return &Error{Code: CodeNotFound, Field: "name", Value: clip(name), Detail: "is no limit"}
	}
	next := s.cloneLimits()
	delete(next.api, name)
	return asError(s.save(next, s.interfaces, ""))
}

func asError(e *Error) error {
	if e == nil {
		return nil
	}
	return e
}

func (s *Store) cloneLimits() limitTable {
	t := s.limits
	return limitTable{config: t.config, api: maps.Clone(t.api), numbers: maps.Clone(t.numbers)}
}

// save checks, writes and puts into force the limits and interfaces as they are to be.
func (s *Store) save(limits limitTable, interfaces map[string]Interface, newest string) *Error {
	if err := CheckLimits(limits.specs(), newest); err != nil {
		return err
	}
	if err := limits.number(); err != nil {
		return err
	}
	failed := s.write("write the settings", func(tx *bbolt.Tx) error {
		return errors.Join(
			replaceBucket(tx, bucketLimits, limits.api, func(l savedLimit) ([]byte, error) { return json.Marshal(l) }),
			replaceBucket(tx, bucketLimitNumbers, limits.numbers, func(n uint8) ([]byte, error) { return []byte{n}, nil }),
			replaceBucket(tx, bucketInterfaces, interfaces, func(i Interface) ([]byte, error) { return json.Marshal(i) }))
	})
	if failed != nil {
		return failed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.limits, s.interfaces = limits, interfaces
	return nil
}

func replaceBucket[V any](tx *bbolt.Tx, name []byte, values map[string]V, encode func(V) ([]byte, error)) error {
	b := tx.Bucket(name)
	var gone [][]byte
	if err := b.ForEach(func(k, _ []byte) error {
		if _, ok := values[string(k)]; !ok {
			gone = append(gone, slices.Clone(k))
		}
		return nil
	}); err != nil {
		return err
	}
	for _, k := range gone {
		if err := b.Delete(k); err != nil {
			return err
		}
	}
	for k, v := range values {
		e, err := encode(v)
		if err != nil {
			return err
		}
		if err := b.Put([]byte(k), e); err != nil {
			return err
		}
	}
	return nil
}

// Configured is what the configuration file says of the state's things.
type Configured struct {
	Limits     map[string]LimitSpec
	Allows     []AllowSpec
	Interfaces map[string]InterfaceMode
}

// Configure puts what the file says in the place of what it said before. Either all of it is in
// force, or nothing has changed.
func (s *Store) Configure(c Configured) error {
	next := limitTable{config: map[string]LimitSpec{}}
	for name, spec := range c.Limits {
		if err := spec.Validate(name); err != nil {
			return err.In("limits." + name)
		}
		next.config[name] = spec
	}
	allows := map[netip.Prefix]Allow{}
	for i, spec := range c.Allows {
		if err := spec.Validate(); err != nil {
			return err.In(fmt.Sprintf("allow[%d]", i))
		}
		p := spec.Prefix.Prefix
		allows[p] = Allow{Prefix: p, NoLimits: spec.NoLimits, Comment: spec.Comment, Source: FromConfig}
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	next.api, next.numbers = s.limits.api, maps.Clone(s.limits.numbers)
	if err := s.save(next, s.configuredInterfaces(c.Interfaces), ""); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.allows.by[FromConfig]
	s.allows.by[FromConfig] = allows
	for p := range before {
		s.allows.refresh(p)
	}
	for p := range allows {
		s.allows.refresh(p)
	}
	return nil
}

// configuredInterfaces is the interfaces with what the file says of them now.
func (s *Store) configuredInterfaces(modes map[string]InterfaceMode) map[string]Interface {
	next := map[string]Interface{}
	for name, i := range s.interfaces {
		if i.Config = ""; i.API != "" {
			next[name] = i
		}
	}
	for name, mode := range modes {
		i := s.interfaces[name]
		i.Name, i.Config = name, mode
		next[name] = i
	}
	return next
}

// Interfaces returns the interfaces of which anything is known, in order of their names.
func (s *Store) Interfaces() []Interface {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.SortedFunc(maps.Values(s.interfaces), func(a, b Interface) int {
		return strings.Compare(a.Name, b.Name)
	})
}

// Interface returns what is known of an interface.
func (s *Store) Interface(name string) (Interface, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	i, ok := s.interfaces[name]
	return i, ok
}

// RememberAttached notes that an interface was attached at run time.
func (s *Store) RememberAttached(name string, mode InterfaceMode) error {
	return s.remember(name, func(i *Interface) {
		i.API, i.Detached = mode, false
	})
}

// RememberDetached notes that an interface was detached at run time.
func (s *Store) RememberDetached(name string) error {
	return s.remember(name, func(i *Interface) {
		i.API, i.Detached = "", i.Config != ""
	})
}

func (s *Store) remember(name string, f func(*Interface)) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	next := maps.Clone(s.interfaces)
	i := next[name]
	i.Name = name
	f(&i)
	if next[name] = i; i.API == "" && i.Config == "" {
		delete(next, name)
	}
	return asError(s.save(s.limits, next, ""))
}

// loadSettings reads what was set at run time.
func (s *Store) loadSettings(tx *bbolt.Tx) error {
	err := tx.Bucket(bucketAllows).ForEach(func(k, v []byte) error {
		var a Allow
		if err := json.Unmarshal(v, &a); err != nil || a.Prefix.String() != string(k) {
			return fmt.Errorf("allow entry %q makes no sense", k)
		}
		s.allows.by[FromAPI][a.Prefix] = a
		s.allows.refresh(a.Prefix)
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(bucketLimits).ForEach(func(k, v []byte) error {
		var l savedLimit
		if err := json.Unmarshal(v, &l); err != nil {
			return fmt.Errorf("limit %q makes no sense: %w", k, err)
		}
		s.limits.api[string(k)] = l
		return nil
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(bucketLimitNumbers).ForEach(func(k, v []byte) error {
		if len(v) != 1 {
			return fmt.Errorf("limit %q has no number", k)
		}
		s.limits.numbers[string(k)] = v[0]
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketInterfaces).ForEach(func(k, v []byte) error {
		var i Interface
		if err := json.Unmarshal(v, &i); err != nil || i.Name != string(k) {
			return fmt.Errorf("interface %q makes no sense", k)
		}
		s.interfaces[i.Name] = i
		return nil
	})
}
