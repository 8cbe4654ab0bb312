// Command lab shows what Levee does, on one machine and in under a minute: it builds a small
// network out of namespaces, floods a web server in it, and measures what a legitimate client of
// that server sees, without the shield and with it. Nothing that it makes has a name outside its
// own namespaces, so all of it ends with the process, however that ends; it never touches an
// interface of the host.
//
// # What is real, and what is played
//
// The server is Go's, on the host's side of a veth pair; the kernel's network stack is as it comes,
// with its SYN cookies and its queues. The client opens a connection for each request, 250 a second,
// and gives up after a second. The daemon is the real one, with a file, a socket and commands.
//
// The flood is made of live frames (BPF_PROG_TEST_RUN): a program gives each its source and sends
// it at an even pace. It runs on the CPU that plays the world and the network card; what the card
// takes in goes to the other CPU, which plays the host, by receive packet steering, where the
// client's packets wait in the same queue as the flood's. On that CPU the stack can't keep up with
// these rates: its queue is full, and the client's packets are lost with the flood's. The card's
// part, and with it the shield's program, goes before all else, as interrupts do.
//
// A flood is a quarter of a second old when the client begins, in both runs: with the shield, the
// burst that each source has free is over then.
package main

//go:generate go tool -modfile=../../tools/go.mod bpf2go -no-global-types -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" flood flood.c
