// Kernels runs the tests of the BPF program, its tables and the loader on other kernels than the host's:
// it fetches Debian's cloud kernels, builds an initramfs of static test binaries, boots each kernel with it
// in qemu, without KVM, and reads the results from a serial port. docs/kernels.md is written by it, and
// what the verifier counts is compared with results.json. Nothing is installed.
package main
