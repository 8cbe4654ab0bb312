package main

import (
	"fmt"
	"os"

	"github.com/levee-xdp/levee/loader"
)

func main() {
	what := "Levee"
	if len(os.Args) > 1 {
		what = "make " + os.Args[1]
	}
	report := loader.Probe("")
	for _, finding := range report.Findings {
		fmt.Fprintln(os.Stderr, "preflight:", finding)
	}
	if report.Err() == nil {
		return
	}
	fmt.Fprintf(os.Stderr, "preflight: %s can't run here: mend what is fatal above", what)
	if what == "make test" {
		fmt.Fprint(os.Stderr, ", or run `make test-unprivileged` for the tests that need neither root nor BPF")
	}
	fmt.Fprintln(os.Stderr)
	os.Exit(1)
}
