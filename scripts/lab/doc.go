// Command lab shows what Levee does, on one machine and in under a minute: it builds a small
// network out of namespaces, floods a web server in it, and measures what a legitimate client of
// that server sees, without the shield and with it. Nothing that it makes has a name outside its
// own namespaces, so all of it ends with the process; it never touches an interface of the host.
package main

//go:generate go tool -modfile=../../tools/go.mod bpf2go -no-global-types -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" flood flood.c
