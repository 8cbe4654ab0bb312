package bpf_test

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf/internal/reference"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

// seeds are sound and odd frames of both families.
func seeds() [][]byte {
	var frames [][]byte
	for _, w := range worlds(nil, nil) { // building needs no program
		for _, g := range goldens() {
			if g.only == 0 || g.only == w.family {
				frames = append(frames, g.packet(w).Bytes())
			}
		}
		for _, c := range chapters() {
			for _, o := range c.rows {
				if o.only == 0 || o.only == w.family {
					frames = append(frames, o.packet(w).Bytes())
				}
			}
		}
	}
	return frames
}

// agree compares what the program and the reference read in a frame.
func (p *parser) agree(t *testing.T, frame []byte) {
	t.Helper()
	found, err := p.parse(frame)
	if err != nil {
		t.Fatal(err)
	}
	want := reference.Parse(frame, rig.FirstBuffer)
	if comparable(found) != comparable(want) {
		t.Errorf("program   %+v\nreference %+v\n% x", found, want, frame[:min(len(frame), 256)])
	}
}

// FuzzProgramAgainstReference runs any frame through the program and the reference parser: both read
// the same in it.
func FuzzProgramAgainstReference(f *testing.F) {
	needKernel(f)
	for _, frame := range seeds() {
		f.Add(frame)
	}
	p := newParser(f, loadFrags(f))
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) < 14 || len(frame) > 16<<10 {
			t.Skip("no program can be run with it")
		}
		p.agree(t, frame)
	})
}

// mutate draws one of some frames, with a few bytes changed where headers are, cut or stretched at random.
func mutate(random *rand.Rand, frames [][]byte) []byte {
	frame := slices.Clone(frames[random.IntN(len(frames))])
	for range random.IntN(4) {
		at := random.IntN(min(len(frame), 120))
		// Small numbers and protocols' are where the branches are.
		frame[at] = [...]byte{byte(random.Uint32()), byte(random.IntN(9)), 0, 17, 43, 44, 51, 58, 60, 0xFF}[random.IntN(10)]
	}
	switch random.IntN(4) {
	case 0:
		frame = frame[:max(14, random.IntN(len(frame)+1))]
	case 1:
		frame = append(frame, make([]byte, random.IntN(40))...)
	}
	return frame
}

// TestProgramAgainstReference runs the seeds, mutated.
func TestProgramAgainstReference(t *testing.T) {
	p := newParser(t, loadDefault(t))
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	frames := seeds()
	rounds := 20_000
	if testing.Short() {
		rounds /= 8
	}
	for range rounds {
		frame := mutate(random, frames)
		p.agree(t, frame)
		if t.Failed() {
			return
		}
	}
}
