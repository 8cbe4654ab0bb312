package loader

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// rodata is the section of the program's constants, and the name of the map that holds them.
const rodata = ".rodata"

// haveFrags says whether this kernel takes programs that see packets of several buffers (5.18).
func haveFrags() bool { return features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen) == nil }

// haveV4 says whether this kernel takes BPF instructions of version 4 (6.6), by a move that extends the
// sign. features.HaveV4ISA tries a long jump, which 6.1 takes although it knows nothing of the rest.
func haveV4() bool {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SocketFilter, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, 1),
		asm.MovSX8.Reg(asm.R0, asm.R1),
		asm.Return(),
	}})
	if err != nil {
		return false
	}
	prog.Close()
	return true
}

// tables returns the maps of a spec that are pinned: all but the sections of constants.
func tables(spec *ebpf.CollectionSpec) map[string]*ebpf.MapSpec {
	t := make(map[string]*ebpf.MapSpec, len(spec.Maps))
	for name, m := range spec.Maps {
		if !strings.HasPrefix(name, ".") {
			t[name] = m
		}
	}
	return t
}

// specialise returns the program's spec for one interface.
func (s *Set) specialise(slot int, loopback bool) (*ebpf.CollectionSpec, error) {
	spec := s.spec.Copy()
	f := s.features
	f.Martians = f.Martians && !loopback
	f.Frags = s.frags
	if err := f.Apply(spec); err != nil {
		return nil, err
	}
	if err := bpf.Specialise(spec, s.secret, uint32(slot)); err != nil {
		return nil, err
	}
	if f.Frags {
		spec.Programs[bpf.LeveeProgLevee].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	return spec, nil
}

// load puts a specialised program into the kernel, on the maps of this set, and pins it.
func (s *Set) load(spec *ebpf.CollectionSpec) (*ebpf.Program, error) {
	var objs struct {
		Program   *ebpf.Program `ebpf:"levee"`
		Constants *ebpf.Map     `ebpf:".rodata"`
	}
	if err := spec.LoadAndAssign(&objs, &ebpf.CollectionOptions{MapReplacements: s.maps}); err != nil {
		return nil, fmt.Errorf("load the program: %w", err)
	}
	defer objs.Constants.Close()
	if err := s.pins.pinProgram(objs.Program, objs.Constants); err != nil {
		return nil, errors.Join(err, objs.Program.Close())
	}
	return objs.Program, nil
}

// runs says whether a program in the kernel is the one that spec would become: the same
// instructions, the same constants, the same maps. One that this process may not look at is not.
func (s *Set) runs(id ebpf.ProgramID, spec *ebpf.CollectionSpec) (bool, error) {
	prog, err := s.pins.openProgram(id)
	if notAllowed(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("inspect program %d: %w", id, err)
	}
	tags, err := possibleTags(spec)
	if err != nil {
		return false, fmt.Errorf("compare program %d: %w", id, err)
	}
	if !slices.Contains(tags, info.Tag) {
		return false, nil
	}
	ids, ok := info.MapIDs()
	if !ok {
		return false, nil
	}
	want, err := constants(spec)
	if err != nil {
		return false, err
	}
	found := false
	for _, mapID := range ids {
		if s.holds(mapID) {
			continue
		}
		switch same, err := s.holdsConstants(id, mapID, want); {
		case notAllowed(err):
			return false, nil
		case !same || err != nil:
			return false, err
		}
		found = true
	}
	return found, nil
}

// possibleTags returns the tags that the kernel may give a program: since 6.18 it takes SHA-256, and
// SHA-1 before. ebpf's Instructions.HasTag does not do for programs with functions: it leaves their
// calls unresolved, the kernel does not.
func possibleTags(spec *ebpf.CollectionSpec) ([]string, error) {
	insns := slices.Clone(spec.Programs[bpf.LeveeProgLevee].Instructions)
	for i := range insns {
		if insns[i].IsLoadFromMap() {
			insns[i].Constant = 0 // a descriptor, which differs from load to load
		}
	}
	var b bytes.Buffer
	if err := insns.Marshal(&b, spec.ByteOrder); err != nil {
		return nil, err
	}
	now, before := sha256.Sum256(b.Bytes()), sha1.Sum(b.Bytes())
	const size = 8 // BPF_TAG_SIZE
	return []string{hex.EncodeToString(now[:size]), hex.EncodeToString(before[:size])}, nil
}

// holds says whether a map belongs to this set.
func (s *Set) holds(id ebpf.MapID) bool { return slices.Contains(s.mapIDs, id) }

func (s *Set) holdsConstants(prog ebpf.ProgramID, id ebpf.MapID, want []byte) (bool, error) {
	m, err := s.pins.openConstants(prog, id)
	if err != nil {
		return false, err
	}
	defer m.Close()
	if m.Type() != ebpf.Array || m.MaxEntries() != 1 || int(m.ValueSize()) != len(want) {
		return false, nil
	}
	got, err := m.LookupBytes(uint32(0))
	if err != nil {
		return false, fmt.Errorf("read map %d: %w", id, err)
	}
	return bytes.Equal(got, want), nil
}

// constants returns what a spec's .rodata will hold in the kernel.
func constants(spec *ebpf.CollectionSpec) ([]byte, error) {
	m := spec.Maps[rodata]
	if m == nil || len(m.Contents) != 1 {
		return nil, fmt.Errorf("the object has no %s", rodata)
	}
	section, ok := m.Contents[0].Value.([]byte)
	if !ok {
		return nil, fmt.Errorf("the object's %s holds a %T", rodata, m.Contents[0].Value)
	}
	section = bytes.Clone(section)
	for _, v := range spec.Variables {
		if v.SectionName == rodata && v.Value != nil {
			copy(section[v.Offset:], v.Value)
		}
	}
	return section, nil
}

// difference says what of a map is not as its spec wants it, or nothing.
func difference(name string, want *ebpf.MapSpec, have *ebpf.Map) string {
	switch {
	case have.Type() != want.Type:
		return fmt.Sprintf("%s is a %s, wanted a %s", name, have.Type(), want.Type)
	case have.KeySize() != want.KeySize:
		return fmt.Sprintf("%s has keys of %d bytes, wanted %d", name, have.KeySize(), want.KeySize)
	case have.ValueSize() != want.ValueSize:
		return fmt.Sprintf("%s has values of %d bytes, wanted %d", name, have.ValueSize(), want.ValueSize)
	case have.MaxEntries() != want.MaxEntries:
		return fmt.Sprintf("%s has room for %d, wanted %d", name, have.MaxEntries(), want.MaxEntries)
	case want.Compatible(have) != nil:
		return fmt.Sprintf("%s has other flags", name)
	}
	return ""
}
