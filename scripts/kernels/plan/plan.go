// Package plan is what scripts/kernels and the machines that it boots tell each other. It does nothing.
package plan

import "time"

// Plan is what a machine is to do; it finds it in File.
type Plan struct {
	Modules []string // files to load into the kernel, in this order
	Steps   []Step
}

// File is where a machine finds its plan.
const File = "/plan.json"

// Step is a command to run.
type Step struct {
	Name    string
	Command []string
	Dir     string
	Env     []string
	Limit   time.Duration // it is killed after that
}

// A step's output stands between a line of Begin and its name and one of End, its name and its exit
// code. Done is the last line of all.
const (
	Begin = "@begin"
	End   = "@end"
	Done  = "@done"
)

// Probe is what a kernel can do.
type Probe struct {
	Release      string
	Features     []Feature
	Instructions map[string]uint32 // that the verifier looked at, by variant of the program
}

// Feature is something that Levee uses, or does without where it is missing.
type Feature struct {
	Name    string
	Use     string // what for
	Since   string // the version of Linux that brought it
	Present bool
	Needed  bool   // Levee does not run without
	Why     string // the kernel's words, where it is missing
}
