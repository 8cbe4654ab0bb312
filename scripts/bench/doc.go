// Command bench measures what Levee costs: nanoseconds a packet beside a bare program and beside
// the same duty built out of the kernel's general-purpose maps, every stage's share, frames through
// a veth pair, several CPUs, and the control plane. It judges by ratios within one run; the
// control plane's times are shown beside what they should be, and fail nothing. It sends frames inside network namespaces of its own and nowhere else.
package main

//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" wrapper wrapper.c
//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -I../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" field field.c
//go:generate go tool -modfile=../../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types -cflags "-O2 -mcpu=v3 -I../../bpf -Wall -Wextra -Wno-unused-function -Wno-unused-variable -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" reads reads.c
