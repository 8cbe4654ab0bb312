package state

import (
	"errors"
	"io/fs"
	"maps"
	"os"
)

// KeptLimit is a limit that was found in the kernel when the state had been lost.
type KeptLimit struct {
	Name   string
	Number uint8      // by which the kernel knows it: what sources owe it is kept under that
	Spec   *LimitSpec // nil: what the configuration file says of that name is right
}

// KeepLimits makes limits of the run time of those that were found in the kernel, all or none, and keeps
// their numbers. It is for a state that begins anew.
func (s *Store) KeepLimits(kept []KeptLimit, actor string) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	next := s.cloneLimits()
	for i := range kept {
		k := &kept[i]
		if k.Spec != nil {
			if err := k.Spec.Validate(k.Name); err != nil {
				return err.In("limits." + k.Name)
			}
			next.api[k.Name] = savedLimit{actor, *k.Spec}
		}
		if k.Name != DefaultLimit {
			maps.DeleteFunc(next.numbers, func(_ string, n uint8) bool { return n == k.Number })
			next.numbers[k.Name] = k.Number
		}
	}
	return asError(s.save(next, s.interfaces, ""))
}

// LimitsOnTrial returns the numbers of the limits that are on trial, but for the default one; 0 for one
// that has none.
func (s *Store) LimitsOnTrial() (numbers []uint8) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for thing := range s.trials.held {
		if thing.About == AboutLimit && thing.Name != DefaultLimit {
			numbers = append(numbers, s.limits.numbers[thing.Name])
		}
	}
	return numbers
}

// PutBack undoes that a damaged file was set aside, and forgets the one that was begun in its stead: for
// who can't go on without what it said. The store must be closed.
func (l *Lost) PutBack(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(l.Aside, path)
}
