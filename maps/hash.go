package maps

// hasher is the twin of bpf/hash.h: the keyed hashes by which the program finds a bucket.
type hasher struct{ secret [2]uint64 }

func (h hasher) hash64(x uint64) uint64 {
	x ^= h.secret[0]
	x *= 0xFF51AFD7ED558CCD
	x ^= x >> 32
	x ^= h.secret[1]
	x *= 0xC4CEB9FE1A85EC53
	return x ^ x>>29
}

func (h hasher) hash128(hi, lo uint64) uint64 { return h.hash64(h.hash64(hi) + lo) }
