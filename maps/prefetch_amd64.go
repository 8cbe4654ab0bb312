package maps

// prefetch has the memory of four words brought near, and does not wait for it: unlike reads, it holds up
// nothing that comes after it.
//
//go:noescape
func prefetch(a, b, c, d *uint64)
