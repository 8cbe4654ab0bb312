// Package rig loads the data plane into the kernel for tests and benchmarks, writes its tables
// plainly, and tells what a packet changed. It is attached to no interface and pins nothing.
package rig
