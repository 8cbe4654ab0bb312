package state

import (
	"math/bits"
	"math/rand/v2"
	"runtime"
)

// index leads from the hash of a key to a slot: open addressing in cells of eight bytes, which also
// hold the hash, so that others' slots are hardly ever looked at, and growing looks at none. Which
// keys are the same only its user knows.
type index struct {
	seed  [2]uint64 // which keys meet can't be worked out without it
	cells []uint64  // hash 32 | slot 32; 0 is empty
	used  int
}

const leastCells = 16

// newIndex returns an index with room for so many keys; it grows with more.
func newIndex(seed [2]uint64, room int) index {
	n := leastCells
	for room > n/4*3 {
		n *= 2
	}
	return index{seed: seed, cells: make([]uint64, n)}
}

func newSeed() [2]uint64 { return [2]uint64{rand.Uint64(), rand.Uint64()} }

func (x *index) hash(k key) uint32 {
	what := uint64(k.bits)
	if k.v4 {
		what |= 1 << 8
	}
	hi, lo := bits.Mul64(k.hi^x.seed[0], k.lo^x.seed[1])
	hi, lo = bits.Mul64(hi^lo^what, x.seed[1]|1)
	return uint32(hi ^ lo ^ lo>>32)
}

func (x *index) home(hash uint32) uint32  { return hash & uint32(len(x.cells)-1) }
func (x *index) after(cell uint32) uint32 { return (cell + 1) & uint32(len(x.cells)-1) }

// fill has an empty cell, which the search for a hash ended in, lead to a slot.
func (x *index) fill(cell, hash, slot uint32) {
	x.cells[cell] = uint64(hash)<<32 | uint64(slot)
	if x.used++; x.used > len(x.cells)/4*3 {
		x.resize(2 * len(x.cells))
	}
}

// lead has a cell lead to another slot of the same key.
func (x *index) lead(cell, slot uint32) {
	x.cells[cell] = x.cells[cell]>>32<<32 | uint64(slot)
}

// empty empties a cell. Those behind it that were pushed past it move up.
func (x *index) empty(cell uint32) {
	x.used--
	gap := cell
	for {
		x.cells[gap] = 0
		for at := x.after(gap); ; at = x.after(at) {
			v := x.cells[at]
			if v == 0 {
				return
			}
			mask := uint32(len(x.cells) - 1)
			home := x.home(uint32(v >> 32))
			if (at-home)&mask >= (at-gap)&mask {
				x.cells[gap] = v
				gap = at
				break
			}
		}
	}
}

// touch reads the cells in which searches for hashes begin. They lie in places that have nothing to do
// with each other, so asking for many at once takes a fraction of the time of asking one by one.
func (x *index) touch(hashes []uint32) {
	sum := uint64(0) // means nothing: it is there so that the reads are not optimised away
	for _, h := range hashes {
		sum += x.cells[x.home(h)]
	}
	runtime.KeepAlive(sum)
}

func (x *index) resize(n int) {
	old := x.cells
	x.cells = make([]uint64, n)
	for _, v := range old {
		if v == 0 {
			continue
		}
		cell := x.home(uint32(v >> 32))
		for x.cells[cell] != 0 {
			cell = x.after(cell)
		}
		x.cells[cell] = v
	}
}
