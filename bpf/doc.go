// Package bpf is the data plane: the XDP program in C, its compiled form, and the Go bindings
// generated from it. It decides nothing at run time; loader puts it into the kernel and maps
// reads and writes its tables.
package bpf

//go:generate go tool -modfile=../tools/go.mod bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -cflags "-O2 -mcpu=v3 -Wall -Wextra -Werror -fdebug-prefix-map=${PWD}=/levee -fdebug-compilation-dir=/levee" -type reason -type family -type threshold -type sizes -type stat -type ban_flags -type ban_word -type ban_geometry -type ban4_class -type ban6_tier -type allow_flags -type limit_flags -type rate_unit -type source_tag -type tab_geometry -type event -type rate -type ban6_entry Levee levee.c
