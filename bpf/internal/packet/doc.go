// Package packet builds frames for tests and benchmarks, header by header. Lengths, next-protocol
// fields and checksums are right unless a test asks for wrong ones; it never reads packets.
package packet
