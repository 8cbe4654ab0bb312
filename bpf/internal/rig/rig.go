package rig

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
)

// Config says how the program is loaded.
type Config struct {
	Spec     *ebpf.CollectionSpec // nil: the committed object
	Sizes    bpf.Sizes            // zero: the smallest
	Features bpf.Features         // zero: the default ones
	Slot     uint32               // of the interface in the counters
}

// FirstBuffer is how much of a multi-buffer frame a test run puts into the first buffer, and the
// longest frame that a program without Features.Frags can be run with: a page without XDP's headroom
// and the kernel's skb_shared_info.
const FirstBuffer = 4096 - 256 - 320

// Smallest is the smallest tables that pass Sizes.Validate.
func Smallest() bpf.Sizes {
	return bpf.Sizes{Ban4Entries: 1 << 10, Ban6Entries: 1 << 10, Sources: 1 << 10, Allows: 1 << 4}
}

// Rig is the program in the kernel, with its tables within reach. It is not safe for concurrent use,
// apart from Run.
type Rig struct {
	Program  *ebpf.Program
	Programs map[string]*ebpf.Program // all of the object's
	Maps     map[string]*ebpf.Map
	Slot     uint32

	coll    *ebpf.Collection
	secret  [2]uint64
	memory  map[string]*ebpf.Memory
	dirty   map[string]bool
	tries   []trieKey
	lists   map[uint16]bool // with a ban
	limits  map[uint8]bool
	control bpf.Control
	frags   bool
	cpus    int
}

type trieKey struct {
	name string
	key  bpf.PrefixKey
}

// Available returns why no program can be loaded here, or nil: without privileges, or with
// LEVEE_UNPRIVILEGED set, tests that need the kernel skip.
func Available() error {
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		return errors.New("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		return errors.New("needs root, to load BPF programs")
	}
	return nil
}

// Load puts the program into the kernel, with a random secret.
func Load(c Config) (*Rig, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("remove the memlock limit: %w", err)
	}
	spec := c.Spec
	if spec == nil {
		var err error
		if spec, err = bpf.LoadLevee(); err != nil {
			return nil, fmt.Errorf("read the object: %w", err)
		}
	}
	if c.Sizes == (bpf.Sizes{}) {
		c.Sizes = Smallest()
	}
	if c.Features == (bpf.Features{}) {
		c.Features = bpf.DefaultFeatures()
	}
	r := &Rig{Slot: c.Slot, frags: c.Features.Frags, memory: make(map[string]*ebpf.Memory), dirty: make(map[string]bool),
		lists: make(map[uint16]bool), limits: make(map[uint8]bool)}
	secret := make([]byte, 16)
	rand.Read(secret)
	r.secret = [2]uint64{binary.NativeEndian.Uint64(secret), binary.NativeEndian.Uint64(secret[8:])}
	if err := errors.Join(c.Sizes.Apply(spec), c.Features.Apply(spec), bpf.Specialise(spec, r.secret, c.Slot)); err != nil {
		return nil, err
	}
	if c.Features.Frags {
		spec.Programs[bpf.LeveeProgLevee].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	r.coll, r.Program, r.Programs, r.Maps = coll, coll.Programs[bpf.LeveeProgLevee], coll.Programs, coll.Maps
	if r.cpus, err = ebpf.PossibleCPU(); err != nil {
		coll.Close()
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	for name, m := range coll.Maps {
		if m.Flags()&unix.BPF_F_MMAPABLE == 0 || name[0] == '.' {
			continue
		}
		if r.memory[name], err = m.Memory(); err != nil {
			coll.Close()
			return nil, fmt.Errorf("map %s into memory: %w", name, err)
		}
	}
	return r, nil
}

// Close takes the program and its tables out of the kernel.
func (r *Rig) Close() { r.coll.Close() }

// String names the secret, so that a failure that depends on it can be seen again.
func (r *Rig) String() string { return fmt.Sprintf("secret %#x", r.secret) }

// Run hands a frame of at least 14 bytes to the program once and returns its verdict, an XDP action.
func (r *Rig) Run(frame []byte) (uint32, error) { return r.Repeat(frame, 1) }

// Repeat hands a frame to the program n times on this thread's CPU, in one system call, and returns
// the last verdict. It begins and ends with the kernel patching its own code, so a few packets are
// sent faster one by one.
func (r *Rig) Repeat(frame []byte, n int) (uint32, error) {
	if len(frame) > FirstBuffer && !r.frags {
		return 0, fmt.Errorf("run a frame of %d bytes: more than %d need Features.Frags", len(frame), FirstBuffer)
	}
	verdict, err := r.Program.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(n)})
	if err != nil {
		return 0, fmt.Errorf("run a frame of %d bytes: %w", len(frame), err)
	}
	return verdict, nil
}

// Reset empties every table but the counters.
func (r *Rig) Reset() {
	for name := range r.dirty {
		r.zero(name)
	}
	clear(r.dirty)
	clear(r.lists)
	clear(r.limits)
	for _, k := range r.tries {
		if err := r.Maps[k.name].Delete(k.key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			panic(fmt.Sprintf("rig: empty %s: %v", k.name, err))
		}
	}
	r.tries = r.tries[:0]
	for _, name := range []string{bpf.LeveeMapSourceTags, bpf.LeveeMapAggregates, bpf.LeveeMapControlCaps} {
		r.zero(name)
	}
	r.zeroPerCPU(bpf.LeveeMapTabs)
	r.zeroPerCPU(bpf.LeveeMapBan6Fars)
	r.zeroPerCPU(bpf.LeveeMapEventWindows)
	r.control = bpf.Control{Ban6Version: r.control.Ban6Version + 1} // it never falls
	r.SetControl(func(*bpf.Control) {})
}

var zeros [1 << 16]byte

func (r *Rig) zero(name string) {
	m := r.memory[name]
	for at := int64(0); at < int64(m.Size()); at += int64(len(zeros)) {
		r.poke(name, at, zeros[:min(len(zeros), int(int64(m.Size())-at))])
	}
}

func (r *Rig) zeroPerCPU(name string) {
	values := make([][]byte, r.cpus)
	for i := range values {
		values[i] = make([]byte, (r.Maps[name].ValueSize()+7)&^7)
	}
	for i := range r.Maps[name].MaxEntries() {
		must(r.Maps[name].Put(i, values))
	}
}

func (r *Rig) poke(name string, at int64, b []byte) {
	if _, err := r.memory[name].WriteAt(b, at); err != nil {
		panic(fmt.Sprintf("rig: write %s at %d: %v", name, at, err))
	}
}

func (r *Rig) peek(name string, at int64, b []byte) {
	if _, err := r.memory[name].ReadAt(b, at); err != nil {
		panic(fmt.Sprintf("rig: read %s at %d: %v", name, at, err))
	}
}

// put writes an array's entry, and has Reset undo it.
func put[T any](r *Rig, name string, index uint32, v T) {
	r.dirty[name] = true
	size := int64(unsafe.Sizeof(v))
	r.poke(name, int64(index)*size, unsafe.Slice((*byte)(unsafe.Pointer(&v)), size))
}

// get reads an array's entry.
func get[T any](r *Rig, name string, index uint32) T {
	var v T
	size := int64(unsafe.Sizeof(v))
	r.peek(name, int64(index)*size, unsafe.Slice((*byte)(unsafe.Pointer(&v)), size))
	return v
}

func must(err error) {
	if err != nil {
		panic("rig: " + err.Error())
	}
}

// Monotonic is the program's clock, in ns.
func Monotonic() uint64 {
	var ts unix.Timespec
	must(unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts))
	return uint64(ts.Nano())
}

// Memlock is the kernel's memory of each map, in bytes.
func (r *Rig) Memlock() (map[string]uint64, error) {
	sizes := make(map[string]uint64)
	for name, m := range r.Maps {
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("ask for %s: %w", name, err)
		}
		sizes[name], _ = info.Memlock() // none: an empty trie
	}
	return sizes, nil
}

// hash64 and hash128 are hash.h's, written again.
func (r *Rig) hash64(x uint64) uint64 {
	x = (x ^ r.secret[0]) * 0xFF51AFD7ED558CCD
	x = (x ^ x>>32 ^ r.secret[1]) * 0xC4CEB9FE1A85EC53
	return x ^ x>>29
}

func (r *Rig) hash128(hi, lo uint64) uint64 { return r.hash64(r.hash64(hi) + lo) }

func (r *Rig) buckets(name string) uint32 { return r.Maps[name].MaxEntries() }

// names returns a set's names in order.
func names[V any](m map[string]V) []string {
	all := make([]string, 0, len(m))
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
