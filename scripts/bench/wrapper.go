package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// draw says where a wrapper takes its sources from; the names are those of wrapper.c.
type draw uint32

const (
	drawFixed draw = iota
	drawRandom
	drawSequence
	drawShuffle
)

// source is the sources of one case: how they are drawn, and from what.
type source struct {
	name  string
	draw  draw
	addrs []netip.Addr // drawFixed: one; drawSequence and drawShuffle: the list
}

// wrappers makes the programs that rewrite a packet's source and tail-call what is measured.
type wrappers struct {
	targets *ebpf.Map
	next    uint32
	lists   map[*netip.Addr]*ebpf.Map // by the first address of what they hold
	closers []interface{ Close() error }
	frags   bool // the programs take multi-buffer packets; all of one kind
}

func newWrappers(frags bool) (*wrappers, error) {
	spec, err := loadWrapper()
	if err != nil {
		return nil, err
	}
	targets, err := ebpf.NewMap(spec.Maps["targets"])
	if err != nil {
		return nil, fmt.Errorf("create the wrapper's targets: %w", err)
	}
	return &wrappers{targets: targets, lists: make(map[*netip.Addr]*ebpf.Map), frags: frags}, nil
}

// wrap returns a program that runs target with the source's addresses. The wrappers own it.
func (w *wrappers) wrap(target *ebpf.Program, v6 bool, src source) (*ebpf.Program, error) {
	if err := w.targets.Put(w.next, target); err != nil {
		return nil, fmt.Errorf("put %s behind the wrapper: %w", target, err)
	}
	slot := w.next
	w.next++
	return w.load(v6, src, map[string]any{"cfg_target": slot})
}

// load loads a wrapper with these constants, besides those of its source.
func (w *wrappers) load(v6 bool, src source, constants map[string]any) (*ebpf.Program, error) {
	spec, err := loadWrapper()
	if err != nil {
		return nil, err
	}
	constants["cfg_draw"] = uint32(src.draw)
	constants["cfg_ipv6"] = v6
	replace := map[string]*ebpf.Map{"targets": w.targets}
	list, unused := "list4", "list6"
	if v6 {
		list, unused = unused, list
	}
	spec.Maps[unused].MaxEntries = 1
	switch src.draw {
	case drawFixed:
		if v6 {
			a := src.addrs[0].As16()
			constants["cfg_fixed6"] = [2]uint64{binary.NativeEndian.Uint64(a[:]), binary.NativeEndian.Uint64(a[8:])}
		} else {
			a := src.addrs[0].As4()
			constants["cfg_fixed4"] = binary.NativeEndian.Uint32(a[:])
		}
		spec.Maps[list].MaxEntries = 1
	case drawRandom:
		spec.Maps[list].MaxEntries = 1
	default:
		constants["cfg_entries"] = uint32(len(src.addrs))
		m, err := w.list(spec.Maps[list], src.addrs)
		if err != nil {
			return nil, err
		}
		spec.Maps[list].MaxEntries = m.MaxEntries()
		replace[list] = m
	}
	for name, value := range constants {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	if w.frags {
		spec.Programs["wrapper"].Flags |= xdpHasFrags
	}
	coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if err != nil {
		return nil, fmt.Errorf("load the wrapper: %w", err)
	}
	program := coll.DetachProgram("wrapper")
	coll.Close()
	w.closers = append(w.closers, program)
	return program, nil
}

// list writes addresses into a map of their own, once.
func (w *wrappers) list(spec *ebpf.MapSpec, addrs []netip.Addr) (*ebpf.Map, error) {
	if m := w.lists[&addrs[0]]; m != nil {
		return m, nil
	}
	var flat []byte
	for _, addr := range addrs {
		flat = append(flat, addr.AsSlice()...)
	}
	spec.MaxEntries = uint32(len(flat)) / spec.ValueSize
	m, err := ebpf.NewMap(spec)
	if err != nil {
		return nil, fmt.Errorf("create the wrapper's list: %w", err)
	}
	w.closers = append(w.closers, m)
	w.lists[&addrs[0]] = m
	keys := make([]uint32, spec.MaxEntries)
	for i := range keys {
		keys[i] = uint32(i)
	}
	lines := make([][64]byte, spec.MaxEntries)
	for i := range lines {
		copy(lines[i][:], flat[i*64:])
	}
	if _, err := m.BatchUpdate(keys, lines, nil); err != nil {
		return nil, fmt.Errorf("fill the wrapper's list: %w", err)
	}
	return m, nil
}

func (w *wrappers) close() {
	_ = w.targets.Close()
	for _, c := range w.closers {
		_ = c.Close()
	}
}
