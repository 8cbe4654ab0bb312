//go:build !amd64 || race

package maps

import "sync/atomic"

// store writes a word of a table after everything that was written before it, and in one piece: a reader
// that sees it sees the rest, too. See the one for amd64; elsewhere this is what is needed at the least.
func store(at *uint64, v uint64) { atomic.StoreUint64(at, v) }
