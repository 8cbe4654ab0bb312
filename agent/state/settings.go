package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

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

// SetLimit makes or replaces a limit of the run time.
func (s *Store) SetLimit(name string, spec LimitSpec, actor string) (Limit, error) {
	if err := spec.Validate(name); err != nil {
		return Limit{}, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	next := s.cloneLimits()
	next.api[name] = savedLimit{actor, spec}
	if err := s.save(next, s.interfaces, name); err != nil {
		return Limit{}, err
	}
	l, _ := next.limit(name)
	return l, nil
}

// JudgeLimit tells whether a limit can be set, and whether that would change anything.
func (s *Store) JudgeLimit(name string, spec LimitSpec) (changes bool, err error) {
	if err := spec.Validate(name); err != nil {
		return false, err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	next := s.cloneLimits()
	before, had := next.api[name]
	next.api[name] = savedLimit{Spec: spec}
	if err := CheckLimits(next.specs(), name); err != nil {
		return false, err
	}
	return !had || !reflect.DeepEqual(before.Spec, spec), nil
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
	BuiltIn    map[string]LimitSpec // Levee's own limits, where nobody says otherwise
	Proxies    []Prefix             // the trusted ones, never banned automatically
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
	proxies, err := newProxies(c.Proxies)
	if err != nil {
		return err
	}
	s.writer.Lock()
	defer s.writer.Unlock()
	next.api, next.numbers = s.limits.api, maps.Clone(s.limits.numbers)
	next.addBuiltIn(c.BuiltIn)
	if err := s.save(next, s.configuredInterfaces(c.Interfaces), ""); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.allows.replace(FromConfig, allows)
	s.proxies = proxies
	return nil
}

// addBuiltIn adds Levee's own limits, but for those whose name or services somebody has a limit for.
func (t *limitTable) addBuiltIn(limits map[string]LimitSpec) {
	taken := map[Service]bool{}
	for _, l := range t.specs() {
		for _, s := range l.Services {
			taken[s] = true
		}
	}
	for name, l := range limits {
		_, named := t.config[name]
		if !named && !slices.ContainsFunc(l.Services, func(s Service) bool { return taken[s] }) {
			t.config[name] = l
		}
	}
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
		a, err := s.loadAllow(v)
		if err != nil || a.Prefix.String() != string(k) {
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
