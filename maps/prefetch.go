//go:build !amd64

package maps

import "runtime"

// prefetch reads four words, so that they are near. The reads do not wait for each other.
func prefetch(a, b, c, d *uint64) {
	sum := *a + *b + *c + *d // means nothing: it is there so that the reads are not optimised away
	runtime.KeepAlive(sum)
}
