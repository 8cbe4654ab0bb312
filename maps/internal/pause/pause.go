package pause

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Moments is how many moments of a run can be stopped at.
const Moments = 64 * len(pausePause{}.Stops)

// Map is the name of the map that a program with pauses has besides its own.
const Map = pauseMapPauses

// Into puts a pause around a function of a program that has not been loaded yet: one that the compiler has
// left a function of its own. Whoever calls it calls the pause instead, and that calls it.
func Into(spec *ebpf.CollectionSpec, program, function string) error {
	mine, err := loadPause()
	if err != nil {
		return err
	}
	p := spec.Programs[program]
	at := slices.IndexFunc(p.Instructions, func(ins asm.Instruction) bool { return ins.Symbol() == function })
	if at < 0 {
		return fmt.Errorf("put a pause around %s: %s has no such function", function, program)
	}
	first := &p.Instructions[at]
	signature := btf.FuncMetadata(first)
	proto, ok := signature.Type.(*btf.FuncProto)
	if !ok {
		return fmt.Errorf("put a pause around %s: its type is %s", function, signature.Type)
	}
	itself := function + "_itself"

	// What is kept over a call: the arguments, then the result.
	from := []asm.Register{asm.R1, asm.R2, asm.R3, asm.R4}[:len(proto.Params)]
	to := []asm.Register{asm.R6, asm.R7, asm.R8, asm.R9}
	var around asm.Instructions
	for i, r := range from {
		around = append(around, asm.Mov.Reg(to[i], r))
	}
	around = append(around, asm.Call.Label(pauseProgMoment))
	for i, r := range from {
		around = append(around, asm.Mov.Reg(r, to[i]))
	}
	around = append(around,
		asm.Call.Label(itself),
		asm.Mov.Reg(to[0], asm.R0),
		asm.Call.Label(pauseProgMoment),
		asm.Mov.Reg(asm.R0, to[0]),
		asm.Return(),
	)
	around[0] = btf.WithFuncMetadata(around[0].WithSymbol(function).WithSource(first.Source()), signature)
	*first = first.WithSymbol(itself)

	moment := mine.Programs[pauseProgPause].Instructions
	moment = moment[slices.IndexFunc(moment, func(ins asm.Instruction) bool { return ins.Symbol() == pauseProgMoment }):]
	p.Instructions = slices.Concat(p.Instructions, around, moment)
	spec.Maps[Map] = mine.Maps[Map]
	return nil
}

// pauseProgMoment is the function of pause.c that is called.
const pauseProgMoment = "moment"

// Pause is what a loaded program with a pause is run by. One caller at a time.
type Pause struct {
	program *ebpf.Program
	mapped  []byte
	shared  *pausePause
}

// Of takes a program that Into was called for, and its map.
func Of(program *ebpf.Program, pauses *ebpf.Map) (*Pause, error) {
	mapped, err := unix.Mmap(pauses.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", pauses, err)
	}
	return &Pause{program: program, mapped: mapped, shared: (*pausePause)(unsafe.Pointer(&mapped[0]))}, nil
}

// ErrLate says that meanwhile was not done in two seconds, and the program went on alone: the machine is
// that busy. The run has said nothing.
var ErrLate = errors.New("the program went on before it was told to")

// Run hands a frame to the program and returns its verdict, and how many moments there were at which the
// function began or ended. At each moment that stops names, of the first Moments, the program waits while
// meanwhile is called, on a goroutine of its own. It needs two CPUs: a program that waits leaves its own to nobody.
// Returns ErrLate if one of the waits was too long.
func (p *Pause) Run(frame []byte, stops []int, meanwhile func()) (verdict uint32, moments int, err error) {
	var all, first unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return 0, 0, fmt.Errorf("ask which CPUs there are: %w", err)
	}
	rest := all
	for cpu := 0; first.Count() == 0; cpu++ {
		if all.IsSet(cpu) {
			first.Set(cpu)
			rest.Clear(cpu)
		}
	}
	*p.shared = pausePause{}
	for _, moment := range stops {
		p.shared.Stops[moment/64] |= 1 << (moment % 64)
	}
	var ended atomic.Bool
	var group errgroup.Group
	group.Go(func() (err error) {
		defer ended.Store(true)
		if err = alone(&first); err == nil {
			verdict, err = p.program.Run(&ebpf.RunOptions{Data: frame})
		}
		return err
	})
	group.Go(func() error {
		if err := alone(&rest); err != nil {
			return err
		}
		for freed := uint64(0); !ended.Load(); {
			if atomic.LoadUint64(&p.shared.Waits) == freed {
				runtime.Gosched()
				continue
			}
			meanwhile()
			freed++
			atomic.StoreUint64(&p.shared.Freed, freed)
		}
		return nil
	})
	err = group.Wait()
	if err == nil && p.shared.Late > 0 {
		err = ErrLate
	}
	if err != nil {
		return 0, 0, fmt.Errorf("run the program with pauses: %w", err)
	}
	return verdict, int(p.shared.Moments), nil
}

// alone gives the goroutine a thread of its own, which ends with it, on these CPUs and before all others.
func alone(cpus *unix.CPUSet) error {
	runtime.LockOSThread()
	if err := unix.SchedSetaffinity(0, cpus); err != nil {
		return fmt.Errorf("bind a thread to its CPUs: %w", err)
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise a thread's priority: %w", err)
	}
	return nil
}

// Close forgets the pause; the program is the caller's.
func (p *Pause) Close() error { return unix.Munmap(p.mapped) }
