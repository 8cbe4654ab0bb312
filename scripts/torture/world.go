package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// The two ends of the wire. Interfaces of these names exist in the torture's own namespaces alone.
const (
	shielded = "shielded"
	outside  = "outside"
	spare    = "spare"             // another interface of the host, on which nothing comes in
	root     = "/sys/fs/bpf/levee" // in the host's own mount namespace
)

// The sources whose frames never stop: those that stay banned all the time, and those that never are.
var (
	bannedSources = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:77::1")}
	cleanSources  = []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:77::2")}
)

// world is a host with a shielded interface, and who sends to it. What passes the shield is counted
// per source right behind it, and dropped there.
type world struct {
	host, outer  *space.Space
	mac          net.HardwareAddr
	outerIndex   int
	generator    *ebpf.Program
	counter      *ebpf.Program
	passed       *ebpf.Map
	lastMaps     map[ebpf.MapID]bool // every map that was ever seen pinned
	lastPrograms map[ebpf.ProgramID]bool
}

func newWorld() (_ *world, err error) {
	w := &world{lastMaps: map[ebpf.MapID]bool{}, lastPrograms: map[ebpf.ProgramID]bool{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	hostCPU, outerCPU, err := space.CPUs()
	if err != nil {
		return nil, err
	}
	if w.host, err = space.New("host", hostCPU); err != nil {
		return nil, err
	}
	if w.outer, err = space.New("outside", outerCPU); err != nil {
		return nil, err
	}
	far, err := w.outer.Handle()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	err = w.host.Do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: shielded, MTU: 1500, NumRxQueues: 1, NumTxQueues: 1},
			PeerName:  outside, PeerNamespace: netlink.NsFd(far.Fd()),
		})
	})
	if err != nil {
		return nil, fmt.Errorf("make a veth pair: %w", err)
	}
	if err := w.host.Do(w.raiseHost); err != nil {
		return nil, fmt.Errorf("set up the host: %w", err)
	}
	if err := w.outer.Do(w.raiseOutside); err != nil {
		return nil, fmt.Errorf("set up the outside: %w", err)
	}
	return w, nil
}

func (w *world) raiseHost() error {
	nic, err := raise(shielded)
	if err != nil {
		return err
	}
	w.mac = nic.Attrs().HardwareAddr
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: spare}, PeerName: spare + "-peer"}); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	if err := space.ReceiveOn(shielded); err != nil {
		return err
	}
	if w.passed, err = ebpf.NewMap(&ebpf.MapSpec{Name: "passed", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 512}); err != nil {
		return fmt.Errorf("count behind the shield: %w", err)
	}
	if w.counter, err = ebpf.NewProgram(countingProgram(w.passed)); err != nil {
		return fmt.Errorf("count behind the shield: %w", err)
	}
	classifier := &netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: nic.Attrs().Index, Parent: netlink.HANDLE_CLSACT, Handle: netlink.MakeHandle(0xffff, 0)},
		QdiscType:  "clsact",
	}
	if err := netlink.QdiscAdd(classifier); err != nil {
		return fmt.Errorf("count behind the shield: %w", err)
	}
	return netlink.FilterAdd(&netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: nic.Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Priority: 1, Protocol: unix.ETH_P_ALL},
		Fd:          w.counter.FD(), Name: "passed", DirectAction: true,
	})
}

func (w *world) raiseOutside() error {
	nic, err := raise(outside)
	if err != nil {
		return err
	}
	w.outerIndex = nic.Attrs().Index
	w.generator, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "torture", Type: ebpf.XDP, AttachType: ebpf.AttachXDP, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Imm(asm.R1, int32(w.outerIndex)), asm.Mov.Imm(asm.R2, 0),
			asm.FnRedirect.Call(), asm.Return(),
		},
	})
	return err
}

func raise(name string) (netlink.Link, error) {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return nil, fmt.Errorf("bring %s up: %w", name, err)
	}
	return nic, nil
}

// countingProgram counts by the last byte of the sources of 203.0.113.0/24 and, from 256 on, of
// 2001:db8:77::/64, and takes these packets away. It leaves all others alone.
func countingProgram(passed *ebpf.Map) *ebpf.ProgramSpec {
	const (
		otherwise, takeAway = -1, 2 // TC_ACT_UNSPEC, TC_ACT_SHOT
		source4, source6    = 14 + 12, 14 + 8
	)
	return &ebpf.ProgramSpec{
		Name: "passed", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.Mov.Reg(asm.R6, asm.R1),
			asm.LoadAbs(12, asm.Half),
			asm.JEq.Imm(asm.R0, unix.ETH_P_IP, "ipv4"),
			asm.JEq.Imm(asm.R0, unix.ETH_P_IPV6, "ipv6"),
			asm.Mov.Imm(asm.R0, otherwise).WithSymbol("otherwise"), asm.Return(),

			asm.LoadAbs(source4, asm.Word).WithSymbol("ipv4"),
			asm.Mov.Reg(asm.R7, asm.R0), asm.RSh.Imm(asm.R7, 8),
			asm.JNE.Imm(asm.R7, 203<<16|0<<8|113, "otherwise"),
			asm.And.Imm(asm.R0, 0xff), asm.Ja.Label("count"),

			asm.LoadAbs(source6, asm.Word).WithSymbol("ipv6"),
			asm.JNE.Imm(asm.R0, 0x20010db8, "otherwise"),
			asm.LoadAbs(source6+4, asm.Word),
			asm.JNE.Imm(asm.R0, 0x00770000, "otherwise"),
			asm.LoadAbs(source6+15, asm.Byte),
			asm.Add.Imm(asm.R0, 256),

			asm.StoreMem(asm.RFP, -4, asm.R0, asm.Word).WithSymbol("count"),
			asm.LoadMapPtr(asm.R1, passed.FD()),
			asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "otherwise"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, takeAway), asm.Return(),
		},
	}
}

// behind is how many packets of a source have been counted behind the shield.
func (w *world) behind(source netip.Addr) (n uint64, err error) {
	raw := source.AsSlice()
	key := uint32(raw[len(raw)-1])
	if source.Is6() {
		key += 256
	}
	return n, w.passed.Lookup(key, &n)
}

// frame is a UDP packet of a source to the host.
func (w *world) frame(source netip.Addr) []byte {
	b := append([]byte{}, w.mac...)
	b = append(b, 2, 0, 0, 0, 0, 1)
	const udp, payload = 17, 18
	transport := make([]byte, 8+payload)
	binary.BigEndian.PutUint16(transport, 40000)
	binary.BigEndian.PutUint16(transport[2:], 9)
	binary.BigEndian.PutUint16(transport[4:], uint16(len(transport)))
	if source.Is4() {
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, udp
		binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(transport)))
		copy(ip[12:], source.AsSlice())
		copy(ip[16:], []byte{192, 0, 2, 1})
		var sum uint32
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		for sum > 0xffff {
			sum = sum&0xffff + sum>>16
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
		b = append(b, 0x08, 0x00)
		return append(append(b, ip...), transport...)
	}
	ip := make([]byte, 40)
	ip[0], ip[6], ip[7] = 0x60, udp, 64
	binary.BigEndian.PutUint16(ip[4:], uint16(len(transport)))
	copy(ip[8:], source.AsSlice())
	copy(ip[24:], netip.MustParseAddr("2001:db8:1::1").AsSlice())
	b = append(b, 0x86, 0xdd)
	return append(append(b, ip...), transport...)
}

// dropped is how many frames found no room in the queue between the wire's ends: the receiver was
// slower than the sender. No program has seen them.
func (w *world) dropped() (n uint64, err error) {
	err = w.outer.Do(func() error {
		nic, err := netlink.LinkByName(outside)
		if err != nil {
			return err
		}
		n = nic.Attrs().Statistics.TxDropped
		return nil
	})
	return n, err
}

// program returns the program on the shielded interface, by its pinned link, which is the only thing
// that may hold it.
func (w *world) program() (prog *ebpf.Program, err error) {
	err = w.host.Do(func() error {
		l, err := link.LoadPinnedLink(filepath.Join(root, "links", shielded), nil)
		if err != nil {
			return err
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		prog, err = ebpf.NewProgramFromID(info.Program)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("the program on the interface: %w", err)
	}
	return prog, nil
}

// verdict asks the live program what it does with a packet of a source.
func (w *world) verdict(prog *ebpf.Program, source netip.Addr) (drops bool, err error) {
	const drop, pass = 1, 2
	action, err := prog.Run(&ebpf.RunOptions{Data: w.frame(source)})
	switch {
	case err != nil:
		return false, fmt.Errorf("ask the live program about %s: %w", source, err)
	case action != drop && action != pass:
		return false, fmt.Errorf("the live program answers %d for %s", action, source)
	}
	return action == drop, nil
}

// close takes the world down, and reports what of the shield is left then.
func (w *world) close() {
	for _, c := range []interface{ Close() error }{w.generator, w.counter, w.passed} {
		_ = c.Close() // a nil one does nothing
	}
	for _, s := range []*space.Space{w.host, w.outer} {
		if s != nil {
			s.Close()
		}
	}
}

// pinned lists what is pinned, relative to the root.
func (w *world) pinned() (all []string, err error) {
	err = w.host.Do(func() error {
		err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, _ := filepath.Rel(root, path)
			if !entry.IsDir() {
				all = append(all, name)
				return nil
			}
			// A folder counts if nothing is in it and it has no business being there.
			switch held, err := os.ReadDir(path); {
			case err != nil:
				return err
			case len(held) == 0 && !slices.Contains([]string{".", "links", "programs"}, name):
				all = append(all, name)
			}
			return nil
		})
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	})
	return all, err
}

func monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // it cannot fail for this clock
	return time.Duration(ts.Nano())
}
