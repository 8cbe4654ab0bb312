// Package batch asks the data plane about tens of thousands of addresses in one system call, and what
// it did with each. It is for tests alone: the program is the compiled one, but nothing is attached to
// an interface.
package batch

//go:generate go tool -modfile=../../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" batch batch.c
