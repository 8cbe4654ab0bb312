// Package pause stops the data plane in the middle of a look-up, so that a test can change the tables just
// then: what else is a matter of luck becomes a matter of counting. It is for tests alone: the program is
// the compiled one, run by test runs, and nothing is attached to an interface.
//
// It needs Linux 5.17 for its wait (bpf_loop), which is newer than what the data plane needs; two CPUs; and,
// beside what loading a program takes, CAP_SYS_NICE.
package pause

//go:generate go tool -modfile=../../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" pause pause.c
