package bpf_test

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/levee-xdp/levee/bpf"
)

// What the verifier allows along a chain of calls (MAX_BPF_STACK and MAX_CALL_FRAMES in the kernel's
// include/linux/bpf_verifier.h and include/linux/filter.h). Older kernels, 6.1 among them, count each
// frame as a multiple of 32 bytes; newer ones as one of 16 where they compile the program.
const (
	maxStack   = 512
	stackFrame = 32
	maxFrames  = 8
)

// function is what a function takes of the stack, and whom it calls.
type function struct {
	stack int
	calls []string
}

// functions reads a program's functions. What one takes is where the lowest of its variables begins:
// each is read and written, or has its address taken, by an offset from the frame's end.
func functions(p *ebpf.ProgramSpec) map[string]*function {
	all := make(map[string]*function)
	var f *function
	for i, ins := range p.Instructions {
		if name := ins.Symbol(); name != "" {
			f = new(function)
			all[name] = f
		}
		low := 0
		switch op := ins.OpCode; {
		case ins.IsFunctionReference():
			f.calls = append(f.calls, ins.Reference())
		case op.Class() == asm.LdXClass && ins.Src == asm.R10, (op.Class() == asm.StXClass || op.Class() == asm.StClass) && ins.Dst == asm.R10:
			low = int(ins.Offset)
		case op == asm.Mov.Op(asm.RegSource) && ins.Src == asm.R10:
			if next := p.Instructions[i+1]; next.OpCode == asm.Add.Op(asm.ImmSource) && next.Dst == ins.Dst {
				low = int(next.Constant)
			}
		}
		f.stack = max(f.stack, -low)
	}
	return all
}

// deepest is the chain of calls from a function that takes most of the stack, and the longest there is.
func deepest(all map[string]*function, name string) (chain []string, stack, frames int) {
	for _, called := range all[name].calls {
		c, s, n := deepest(all, called)
		if s > stack {
			chain, stack = c, s
		}
		frames = max(frames, n)
	}
	own := (max(all[name].stack, 1) + stackFrame - 1) / stackFrame * stackFrame
	return slices.Concat([]string{name}, chain), own + stack, frames + 1
}

// TestStack computes from the object what the program takes of the stack where its calls are deepest,
// as the strictest kernel does: the one that runs the test may allow more.
func TestStack(t *testing.T) {
	all := functions(spec(t).Programs[bpf.LeveeProgLevee])
	if len(all) < 5 || all[bpf.LeveeProgLevee] == nil {
		t.Fatalf("%d functions", len(all))
	}
	chain, stack, frames := deepest(all, bpf.LeveeProgLevee)
	for _, name := range chain {
		t.Logf("%4d bytes %s", all[name].stack, name)
	}
	t.Logf("%d bytes along these, %d frames at most", stack, frames)
	if stack > maxStack {
		t.Errorf("the calls above take %d bytes of the stack, more than %d: Linux 6.1 refuses that", stack, maxStack)
	}
	if frames > maxFrames {
		t.Errorf("%d calls within each other, more than %d", frames, maxFrames)
	}
}
