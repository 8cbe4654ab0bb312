package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/scripts/kernels/plan"
)

// probe asks the kernel for each feature, and the verifier for the cost of each variant of the program.
func probe() (*plan.Probe, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, err
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, err
	}
	p := &plan.Probe{Release: unix.ByteSliceToString(name.Release[:]), Instructions: make(map[string]uint32)}
	for _, f := range []struct {
		plan.Feature
		ask func() error
	}{
		{plan.Feature{Name: "XDP programs", Use: "everything", Since: "4.8", Needed: true},
			func() error { return features.HaveProgramType(ebpf.XDP) }},
		{plan.Feature{Name: "arrays in user space's memory", Use: "bans and sources are written and read without system calls", Since: "5.5", Needed: true},
			func() error { return features.HaveMapFlag(features.BPF_F_MMAPABLE) }},
		{plan.Feature{Name: "ring buffer", Use: "sampled events", Since: "5.8", Needed: true},
			func() error { return features.HaveMapType(ebpf.RingBuf) }},
		{plan.Feature{Name: "links for XDP", Use: "attachments that outlive the daemon, and upgrades without a gap", Since: "5.9", Needed: true}, attachXDP},
		{plan.Feature{Name: "coarse clock", Use: "expiry at next to no cost", Since: "5.11", Needed: true},
			func() error { return features.HaveProgramHelper(ebpf.XDP, asm.FnKtimeGetCoarseNs) }},
		{plan.Feature{Name: "compare and exchange", Use: "limits that two CPUs charge at once", Since: "5.12", Needed: true}, exchange},
		{plan.Feature{Name: "count of verified instructions", Use: "this page", Since: "5.16"}, verifiedInstructions},
		{plan.Feature{Name: "packets of several buffers", Use: "native mode with jumbo frames", Since: "5.18"},
			func() error { return features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) }},
		{plan.Feature{Name: "live frames in test runs", Use: "the floods of the demo and of tests", Since: "5.18"}, liveFrames},
		{plan.Feature{Name: "instruction set, version 4", Use: "`levee run --compile` makes use of it", Since: "6.6"}, version4},
		{plan.Feature{Name: "program tags by SHA-256", Use: "programs are recognised by either kind", Since: "6.18"}, tagSHA256},
	} {
		err := f.ask()
		f.Present = err == nil
		if err != nil {
			f.Why = err.Error()
		}
		p.Features = append(p.Features, f.Feature)
	}
	for name, change := range variants {
		n, err := instructions(change)
		if err != nil {
			return nil, fmt.Errorf("the program, %s: %w", name, err)
		}
		p.Instructions[name] = n
	}
	return p, nil
}

var variants = map[string]func(*bpf.Features){
	"everything":   func(*bpf.Features) {},
	"multi-buffer": func(f *bpf.Features) { f.Frags = true },
	"no bans":      func(f *bpf.Features) { f.Bans = false },
	"no sanity":    func(f *bpf.Features) { f.Sanity = false },
	"no limits":    func(f *bpf.Features) { f.Limits = false },
	"no events":    func(f *bpf.Features) { f.Events = false },
	"least":        func(f *bpf.Features) { *f = bpf.Features{} },
}

// instructions loads a variant of the committed program, on small tables.
func instructions(change func(*bpf.Features)) (uint32, error) {
	spec, err := bpf.LoadLevee()
	if err != nil {
		return 0, err
	}
	f := bpf.DefaultFeatures()
	change(&f)
	sizes := bpf.Sizes{Ban4Entries: 1 << 10, Ban6Entries: 1 << 10, Sources: 1 << 10, Allows: 1 << 4}
	if err := errors.Join(sizes.Apply(spec), f.Apply(spec), bpf.Specialise(spec, [2]uint64{1, 2}, 0)); err != nil {
		return 0, err
	}
	if f.Frags {
		spec.Programs[bpf.LeveeProgLevee].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		var refused *ebpf.VerifierError
		if errors.As(err, &refused) {
			return 0, errors.New(strings.Join(refused.Log, "\n")) // all that the verifier said
		}
		return 0, err
	}
	defer coll.Close()
	info, err := coll.Programs[bpf.LeveeProgLevee].Info()
	if err != nil {
		return 0, err
	}
	n, _ := info.VerifiedInstructions() // 0: this kernel does not tell
	return n, nil
}

// trivial loads a program that drops everything.
func trivial() (*ebpf.Program, asm.Instructions, error) {
	insns := asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL", Instructions: insns})
	return prog, insns, err
}

// attachXDP attaches to the loopback interface of a network namespace of its own.
func attachXDP() error {
	prog, _, err := trivial()
	if err != nil {
		return err
	}
	defer prog.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and the namespace with it
		space, err := netns.New()
		if err != nil {
			done <- err
			return
		}
		defer space.Close()
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: 1, Flags: link.XDPGenericMode})
		if err == nil {
			err = l.Close()
		}
		done <- err
	}()
	return <-done
}

// exchange tries what limits are charged with, on the stack.
func exchange() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, 0),
		asm.StoreMem(asm.R10, -8, asm.R0, asm.DWord),
		asm.Mov.Imm(asm.R1, 1),
		asm.CmpXchg.Mem(asm.R10, asm.R1, asm.DWord, -8),
		asm.Mov.Imm(asm.R0, 2),
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	return prog.Close()
}

// version4 tries a move that extends the sign. features.HaveV4ISA tries a long jump, which 6.1 takes.
func version4() error {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 1),
		asm.MovSX8.Reg(asm.R0, asm.R1),
		asm.Return(),
	}})
	if err != nil {
		return err
	}
	return prog.Close()
}

func verifiedInstructions() error {
	prog, _, err := trivial()
	if err != nil {
		return err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return err
	}
	if n, ok := info.VerifiedInstructions(); !ok || n == 0 {
		return errors.New("the kernel does not tell")
	}
	return nil
}

func liveFrames() error {
	prog, _, err := trivial()
	if err != nil {
		return err
	}
	defer prog.Close()
	_, err = prog.Run(&ebpf.RunOptions{Data: make([]byte, 64), Repeat: 1, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, Context: liveContext{End: 64, Ifindex: 1}})
	return err
}

// liveContext is struct xdp_md, which a run of live frames has to be given.
type liveContext struct{ Begin, End, Meta, Ifindex, Queue, Egress uint32 }

func tagSHA256() error {
	prog, insns, err := trivial()
	if err != nil {
		return err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return err
	}
	hash := sha256.New()
	if err := insns.Marshal(hash, binary.LittleEndian); err != nil {
		return err
	}
	if want := hex.EncodeToString(hash.Sum(nil)[:8]); info.Tag != want {
		return fmt.Errorf("the tag is %s, not %s", info.Tag, want)
	}
	return nil
}
