package bpf_test

import (
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

var update = flag.Bool("update", false, "write the pages of docs/ that the tests make")

// XDP actions.
const (
	xdpDrop = 1
	xdpPass = 2
)

// testSlot is the interface's slot in the tests: not the first, so that an index that forgets the
// slot shows.
const testSlot = 5

// shared holds one program for each way of loading that tests ask for, loaded once in the binary.
var shared = struct {
	sync.Mutex
	rigs map[rig.Config]*rig.Rig
}{rigs: make(map[rig.Config]*rig.Rig)}

func TestMain(m *testing.M) {
	code := m.Run()
	for _, r := range shared.rigs {
		r.Close()
	}
	os.Exit(code)
}

// needKernel skips the test where no program can be loaded.
func needKernel(tb testing.TB) {
	tb.Helper()
	if err := rig.Available(); err != nil {
		tb.Skip(err)
	}
}

// load returns a program that is loaded like this, with empty tables. Tests that use it do not run in
// parallel.
func load(tb testing.TB, c rig.Config) *rig.Rig {
	tb.Helper()
	needKernel(tb)
	shared.Lock()
	defer shared.Unlock()
	r := shared.rigs[c]
	if r == nil {
		var err error
		if r, err = rig.Load(c); err != nil {
			tb.Fatal(err)
		}
		shared.rigs[c] = r
	}
	r.Reset()
	return r
}

// loadDefault returns the program with all its stages.
func loadDefault(tb testing.TB) *rig.Rig {
	tb.Helper()
	return load(tb, configOf(bpf.DefaultFeatures()))
}

// loadFrags returns the program as loaded for multi-buffer packets.
func loadFrags(tb testing.TB) *rig.Rig {
	tb.Helper()
	features := bpf.DefaultFeatures()
	features.Frags = true
	return load(tb, configOf(features))
}

func configOf(features bpf.Features) rig.Config {
	return rig.Config{Slot: testSlot, Features: features}
}

func run(tb testing.TB, r *rig.Rig, frame []byte) uint32 {
	tb.Helper()
	verdict, err := r.Run(frame)
	if err != nil {
		tb.Fatalf("%v\nframe % x", err, frame)
	}
	return verdict
}

func action(verdict uint32) string {
	switch verdict {
	case xdpDrop:
		return "drop"
	case xdpPass:
		return "pass"
	}
	return fmt.Sprintf("XDP action %d", verdict)
}
