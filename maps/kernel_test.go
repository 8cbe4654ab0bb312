package maps

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps/internal/pause"
)

// setup says how a test wants the program loaded.
type setup struct {
	sizes    bpf.Sizes
	features bpf.Features
	secret   [2]uint64

	// Smaller tables than settings allow, so that they fill: buckets and cells, powers of two.
	buckets4, buckets6, cells6 uint32

	pause string // a function of the program to put a pause around

	unordered bool // the program is told that its CPU may see loads in another order
}

// onlyBans is a program with nothing but the ban list, and small tables.
func onlyBans() setup {
	return setup{
		sizes:    bpf.Sizes{Ban4Entries: 1 << 14, Ban6Entries: 1 << 13, Sources: 1 << 10, Allows: 1 << 8},
		features: bpf.Features{Bans: true},
		secret:   [2]uint64{0x0123456789ABCDEF, 0xFEDCBA9876543210},
	}
}

// kernel is a set of maps, opened, and the program that reads them. Nothing is pinned or attached.
type kernel struct {
	*Tables
	t    testing.TB
	maps map[string]*ebpf.Map
	prog *ebpf.Program
}

func needKernel(t testing.TB) {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set: this test loads a program")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: this test loads a program")
	}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatalf("%v; LEVEE_UNPRIVILEGED=1 skips what takes BPF", err)
	}
	m.Close()
}

func load(t testing.TB, s setup) *kernel {
	t.Helper()
	needKernel(t)
	spec, err := bpf.LoadLevee()
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{s.sizes.Apply(spec), s.features.Apply(spec), bpf.Specialise(spec, s.secret, 3)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if s.unordered {
		if err := spec.Variables[bpf.LeveeVarCfgOrderedLoads].Set(false); err != nil {
			t.Fatal(err)
		}
	}
	for name, o := range map[string]struct {
		entries  uint32
		variable string
	}{
		bpf.LeveeMapBan4Table:  {s.buckets4, bpf.LeveeVarCfgBan4Mask},
		bpf.LeveeMapBan6Table:  {s.buckets6, bpf.LeveeVarCfgBan6Mask},
		bpf.LeveeMapBan6Filter: {s.cells6, bpf.LeveeVarCfgBan6FilterMask},
	} {
		if o.entries != 0 {
			spec.Maps[name].MaxEntries = o.entries
			if err := spec.Variables[o.variable].Set(o.entries - 1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.pause != "" {
		if err := pause.Into(spec, bpf.LeveeProgLevee, s.pause); err != nil {
			t.Fatal(err)
		}
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(coll.Close)
	k := &kernel{t: t, maps: coll.Maps, prog: coll.Programs[bpf.LeveeProgLevee]}
	if err := k.maps[bpf.LeveeMapMeta].Put(uint32(0), bpf.Meta{Schema: bpf.Schema, Secret: s.secret}); err != nil {
		t.Fatal(err)
	}
	face := bpf.Interface{Ifindex: 7, Mode: uint32(ModeGeneric)}
	for i, c := range "test0" {
		face.Name[i] = int8(c)
	}
	if err := k.maps[bpf.LeveeMapInterfaces].Put(uint32(3), face); err != nil {
		t.Fatal(err)
	}
	k.reopen()
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// reopen opens the maps anew, as a daemon does that takes over from another.
func (k *kernel) reopen() {
	k.t.Helper()
	if k.Tables != nil {
		if err := k.Close(); err != nil {
			k.t.Fatal(err)
		}
	}
	tables, err := Open(k.maps)
	if err != nil {
		k.t.Fatal(err)
	}
	k.Tables = tables
}

const (
	xdpDrop = 1
	xdpPass = 2
)

// run runs the program on a frame, so many times, and returns the last verdict.
func (k *kernel) run(frame []byte, times uint32) uint32 {
	k.t.Helper()
	verdict, err := k.prog.Run(&ebpf.RunOptions{Data: frame, Repeat: times})
	if err != nil {
		k.t.Fatal(err)
	}
	return verdict
}

// frame is an Ethernet frame with a UDP datagram from an address; changes are made to it.
func frame(src netip.Addr, changes ...func([]byte)) []byte {
	f := make([]byte, 14, 100)
	if src.Is4() {
		binary.BigEndian.PutUint16(f[12:], 0x0800)
		ip := make([]byte, 20)
		ip[0], ip[8], ip[9] = 0x45, 64, protoUDP
		binary.BigEndian.PutUint16(ip[2:], 46)
		copy(ip[12:], src.AsSlice())
		copy(ip[16:], []byte{192, 0, 2, 1})
		f = append(f, ip...)
	} else {
		binary.BigEndian.PutUint16(f[12:], 0x86DD)
		ip := make([]byte, 40)
		ip[0], ip[6], ip[7] = 0x60, protoUDP, 64
		binary.BigEndian.PutUint16(ip[4:], 26)
		copy(ip[8:], src.AsSlice())
		copy(ip[24:], netip.MustParseAddr("2001:db8::1").AsSlice())
		f = append(f, ip...)
	}
	udp := make([]byte, 26)
	binary.BigEndian.PutUint16(udp[0:], 4000)
	binary.BigEndian.PutUint16(udp[2:], 53)
	binary.BigEndian.PutUint16(udp[4:], 26)
	f = append(f, udp...)
	for _, change := range changes {
		change(f)
	}
	return f
}

// count returns the packets counted for a reason, monitored ones apart.
func (k *kernel) count(reason bpf.Reason, monitored bool) (n uint64) {
	k.t.Helper()
	counts, err := k.Counters.Read()
	if err != nil {
		k.t.Fatal(err)
	}
	for _, c := range counts {
		if c.Reason == reason && c.Monitored == monitored {
			n += c.Packets
		}
	}
	return n
}

// seeded returns a source of randomness that a failed test can be run again with: LEVEE_SEED.
func seeded(t testing.TB) *rand.Rand {
	t.Helper()
	seed := rand.Uint64()
	if s := os.Getenv("LEVEE_SEED"); s != "" {
		seed = 0
		for _, c := range s {
			seed = seed*10 + uint64(c-'0')
		}
	}
	t.Logf("LEVEE_SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// long is by how much more LEVEE_LONG makes tests do.
func long() int {
	if os.Getenv("LEVEE_LONG") != "" {
		return 20
	}
	return 1
}

// some is how many of n random steps a test takes: all, or with -test.short a few, as suits machines
// without hardware's help.
func some(n int) int {
	if testing.Short() {
		return max(1, n/16)
	}
	return n
}

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func address(s string) netip.Addr { return netip.MustParseAddr(s) }
