//go:build amd64 && !race

package maps

// store writes a word of a table after everything that was written before it, and in one piece: a reader
// that sees it sees the rest, too. There is one writer, which never needs more: no proof in this package
// has it read what another CPU wrote after it wrote itself.
//
// On amd64 a plain store of an aligned word does that. The processor lets stores be seen in their order, and
// writes an aligned word at once; the compiler moves nothing past a call that it does not look into. What
// sync/atomic has is an exchange: it waits until all stores before it are done, and everything behind it
// waits for that. Where many slots are filled whose memory is still on its way, that is most of the time.
//
//go:noinline
func store(at *uint64, v uint64) { *at = v }
