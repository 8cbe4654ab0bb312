package httpguard

import (
	"hash/maphash"
	"sync"
)

const (
	shards = 64 // of a table, each with a lock of its own
	spares = 16 // places of a shard that are shared by keys that found no room
	looks  = 16 // entries that are looked at for one that has ended
)

// table keeps something by key, for at most a number of keys. Keys are kept as hashes under a secret
// of the process: an entry costs the same whatever its key is, and nobody can choose keys that meet.
type table[V any] struct {
	seed   maphash.Seed
	most   int                 // keys of a shard
	ended  func(V, int64) bool // whether an entry says nothing any more that a fresh one would not
	shards [shards]shard[V]
}

type shard[V any] struct {
	mu     sync.Mutex
	m      map[uint64]V
	spares [spares]V
	_      [64]byte // so that two locks do not share a cache line
}

func newTable[V any](entries int, ended func(V, int64) bool) *table[V] {
	t := &table[V]{seed: maphash.MakeSeed(), most: max(1, entries/shards), ended: ended}
	for i := range t.shards {
		t.shards[i].m = map[uint64]V{}
	}
	return t
}

// change hands the value of a key on, and stores what comes back if it is not ended. A key that
// finds no room is handed a value that it shares with others, if it may, or else a fresh one that
// is not kept; then the answer is false.
func (t *table[V]) change(key uint64, now int64, share bool, f func(V) V) bool {
	s := &t.shards[key%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.m[key]
	if ok || len(s.m) < t.most || s.makeRoom(now, t.ended) {
		if v = f(v); !t.ended(v, now) {
			s.m[key] = v
		} else if ok {
			delete(s.m, key)
		}
		return true
	}
	if share {
		spare := &s.spares[key/shards%spares]
		*spare = f(*spare)
	} else {
		f(v)
	}
	return false
}

// peek returns the value of a key.
func (t *table[V]) peek(key uint64) (V, bool) {
	s := &t.shards[key%shards]
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.m[key]
	return v, ok
}

// makeRoom removes entries that have ended, of a few that it happens to look at.
func (s *shard[V]) makeRoom(now int64, ended func(V, int64) bool) bool {
	n, done := 0, false
	for k, v := range s.m {
		if ended(v, now) {
			delete(s.m, k)
			done = true
		}
		if n++; n == looks {
			break
		}
	}
	return done
}

// len is how many keys there are.
func (t *table[V]) len() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.m)
		s.mu.Unlock()
	}
	return n
}
