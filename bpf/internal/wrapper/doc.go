// Package wrapper makes floods inside the kernel: a small program that rewrites a frame's source
// address and then tail-calls the program under test, so that a test run sees another source with
// every packet. It is for test runs alone and is never attached to an interface.
package wrapper
