package wrapper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Config says where sources come from: one of the two.
type Config struct {
	// Prefix gives random addresses: of IPv6 the first 64 bits are drawn and the rest stays as the
	// frame has it. Checksums are not mended, for the data plane does not look at them.
	Prefix netip.Prefix
	// List gives its addresses in order, over and over. Each CPU walks it on its own, so who counts
	// keeps the thread on one: a run can move to another CPU in its middle.
	List []netip.Addr
}

// Wrapper is a program that stands before another.
type Wrapper struct {
	program *ebpf.Program
	maps    []*ebpf.Map
}

// Offsets in an untagged frame.
const (
	source4, end4 = 26, 34
	source6, end6 = 22, 54
)

// New puts a wrapper before a program, which must not be loaded for multi-buffer packets.
func New(target *ebpf.Program, c Config) (_ *Wrapper, err error) {
	w := &Wrapper{}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.Close())
		}
	}()

	targets, err := w.add(&ebpf.MapSpec{Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("create the wrapper's target: %w", err)
	}
	if err := targets.Put(uint32(0), uint32(target.FD())); err != nil {
		return nil, fmt.Errorf("set the wrapper's target: %w", err)
	}
	var draw asm.Instructions
	v6 := c.Prefix.Addr().Is6()
	if len(c.List) > 0 {
		v6 = c.List[0].Is6()
		draw, err = w.list(c.List)
	} else if c.Prefix.IsValid() {
		draw = random(c.Prefix)
	} else {
		err = errors.New("neither a prefix nor a list")
	}
	if err != nil {
		return nil, fmt.Errorf("make the wrapper: %w", err)
	}
	w.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "wrapper", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: program(draw, v6, targets),
	})
	if err != nil {
		return nil, fmt.Errorf("load the wrapper: %w", err)
	}
	return w, nil
}

// Run hands a frame to the wrapper n times on this thread's CPU, and returns the last verdict. An
// interrupted run begins anew, so a packet may be seen more often.
func (w *Wrapper) Run(frame []byte, n int) (uint32, error) {
	verdict, err := w.program.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(n)})
	if err != nil {
		return 0, fmt.Errorf("run the wrapper: %w", err)
	}
	return verdict, nil
}

// Close takes the wrapper out of the kernel.
func (w *Wrapper) Close() error {
	var errs []error
	if w.program != nil {
		errs = append(errs, w.program.Close())
	}
	for _, m := range w.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

func (w *Wrapper) add(spec *ebpf.MapSpec) (*ebpf.Map, error) {
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, err
	}
	w.maps = append(w.maps, m)
	return m, nil
}

// program checks that the headers are there, lets draw write the source through R7 (the frame's
// start), and calls the target. R6 holds the context.
func program(draw asm.Instructions, v6 bool, targets *ebpf.Map) asm.Instructions {
	end := int32(end4)
	if v6 {
		end = end6
	}
	insns := asm.Instructions{
		asm.Mov.Reg(asm.R6, asm.R1),
		asm.LoadMem(asm.R7, asm.R6, 0, asm.Word), // data
		asm.LoadMem(asm.R1, asm.R6, 4, asm.Word), // data_end
		asm.Mov.Reg(asm.R2, asm.R7),
		asm.Add.Imm(asm.R2, end),
		asm.JGT.Reg(asm.R2, asm.R1, "out"),
	}
	insns = append(insns, draw...)
	return append(insns,
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.LoadMapPtr(asm.R2, targets.FD()),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnTailCall.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("out"), // XDP_ABORTED: the frame is too short
		asm.Return(),
	)
}

// random draws an address of a prefix. Masks are applied to what stands in memory: network order,
// read by a little-endian host.
func random(p netip.Prefix) asm.Instructions {
	p = p.Masked()
	if p.Addr().Is4() {
		base := binary.LittleEndian.Uint32(p.Addr().AsSlice())
		free := binary.LittleEndian.Uint32(binary.BigEndian.AppendUint32(nil, uint32(uint64(1)<<(32-p.Bits())-1)))
		return asm.Instructions{
			asm.FnGetPrandomU32.Call(),
			asm.LoadImm(asm.R1, int64(free), asm.DWord),
			asm.And.Reg(asm.R0, asm.R1),
			asm.LoadImm(asm.R1, int64(base), asm.DWord),
			asm.Or.Reg(asm.R0, asm.R1),
			asm.StoreMem(asm.R7, source4, asm.R0, asm.Word),
		}
	}
	base := binary.LittleEndian.Uint64(p.Addr().AsSlice())
	var mask uint64 // of 64 bits
	if p.Bits() < 64 {
		mask = 1<<(64-p.Bits()) - 1
	}
	free := binary.LittleEndian.Uint64(binary.BigEndian.AppendUint64(nil, mask))
	return asm.Instructions{
		asm.FnGetPrandomU32.Call(),
		asm.Mov.Reg(asm.R8, asm.R0),
		asm.LSh.Imm(asm.R8, 32),
		asm.FnGetPrandomU32.Call(),
		asm.Or.Reg(asm.R8, asm.R0),
		asm.LoadImm(asm.R1, int64(free), asm.DWord),
		asm.And.Reg(asm.R8, asm.R1),
		asm.LoadImm(asm.R1, int64(base), asm.DWord),
		asm.Or.Reg(asm.R8, asm.R1),
		asm.StoreMem(asm.R7, source6, asm.R8, asm.DWord),
	}
}

// list takes the next address of a list.
func (w *Wrapper) list(addrs []netip.Addr) (asm.Instructions, error) {
	entries, err := w.add(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 16, MaxEntries: uint32(len(addrs))})
	if err != nil {
		return nil, err
	}
	for i, a := range addrs {
		if a.Is4() != addrs[0].Is4() {
			return nil, fmt.Errorf("%s in a list of the other family", a)
		}
		var entry [16]byte
		copy(entry[:], a.AsSlice())
		if err := entries.Put(uint32(i), entry); err != nil {
			return nil, err
		}
	}
	cursor, err := w.add(&ebpf.MapSpec{Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, err
	}
	insns := asm.Instructions{
		asm.StoreImm(asm.RFP, -4, 0, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, cursor.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.Mov.Reg(asm.R2, asm.R1),
		asm.Add.Imm(asm.R2, 1),
		asm.StoreMem(asm.R0, 0, asm.R2, asm.DWord),
		asm.Mod.Imm(asm.R1, int32(len(addrs))),
		asm.StoreMem(asm.RFP, -4, asm.R1, asm.Word),
		asm.Mov.Reg(asm.R2, asm.RFP),
		asm.Add.Imm(asm.R2, -4),
		asm.LoadMapPtr(asm.R1, entries.FD()),
		asm.FnMapLookupElem.Call(),
		asm.JEq.Imm(asm.R0, 0, "out"),
	}
	if addrs[0].Is4() {
		return append(insns,
			asm.LoadMem(asm.R1, asm.R0, 0, asm.Word),
			asm.StoreMem(asm.R7, source4, asm.R1, asm.Word)), nil
	}
	return append(insns,
		asm.LoadMem(asm.R1, asm.R0, 0, asm.DWord),
		asm.StoreMem(asm.R7, source6, asm.R1, asm.DWord),
		asm.LoadMem(asm.R1, asm.R0, 8, asm.DWord),
		asm.StoreMem(asm.R7, source6+8, asm.R1, asm.DWord)), nil
}
