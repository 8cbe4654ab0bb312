package bpf

import "embed"

// Sources are the program's C files, for hosts that compile it themselves (`levee run --compile`).
//
//go:embed *.c *.h
var Sources embed.FS

// CompileFlags are clang's flags for the program, apart from the CPU version and the output.
// They are those of the committed object.
var CompileFlags = []string{"-O2", "-g", "-target", "bpfel", "-Wall", "-Wextra", "-Werror"}
