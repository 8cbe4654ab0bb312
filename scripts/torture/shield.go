package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/bpf"
)

// standing looks at what is pinned and loaded, and says what should not be as it is: exactly one set
// of tables, the links, and one program on these tables for each of them.
func (w *world) standing() (wrong []string, err error) {
	pinned, err := w.pinned()
	if err != nil {
		return nil, err
	}
	set := fmt.Sprint(bpf.Schema)
	maps, links, programs := 0, 0, map[string]int{}
	for _, name := range pinned {
		switch {
		case name == filepath.Join("links", shielded), name == filepath.Join("links", spare):
			links++
		case strings.HasPrefix(name, set+"/maps/"):
			maps++
		case strings.HasPrefix(name, "programs/"):
			programs[filepath.Base(filepath.Dir(name))]++
		default:
			wrong = append(wrong, "left behind: "+filepath.Join(root, name))
		}
	}
	spec, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	want := 0
	for name := range spec.Maps {
		if !strings.HasPrefix(name, ".") {
			want++
		}
	}
	if maps != want {
		wrong = append(wrong, fmt.Sprintf("%d maps are pinned, there should be %d", maps, want))
	}
	ids, err := w.mapIDs()
	if err != nil {
		return nil, err
	}
	users, err := programsOn(ids, links)
	if err != nil {
		return nil, err
	}
	for id := range users {
		w.lastPrograms[id] = true
	}
	for id, n := range programs {
		number, _ := strconv.ParseUint(id, 10, 32)
		if !users[ebpf.ProgramID(number)] || n != 2 {
			wrong = append(wrong, fmt.Sprintf("left behind: %d pins of program %s", n, id))
		}
	}
	if len(users) != links {
		wrong = append(wrong, fmt.Sprintf("%d programs use the tables, and %d interfaces are shielded", len(users), links))
	}
	return wrong, nil
}

// mapIDs are those of the pinned maps.
func (w *world) mapIDs() (ids []ebpf.MapID, err error) {
	pinned, err := w.pinned()
	if err != nil {
		return nil, err
	}
	err = w.host.Do(func() error {
		for _, name := range pinned {
			if filepath.Base(filepath.Dir(name)) != "maps" {
				continue
			}
			m, err := ebpf.LoadPinnedMap(filepath.Join(root, name), nil)
			if err != nil {
				return err
			}
			info, err := m.Info()
			m.Close()
			if err != nil {
				return err
			}
			if id, ok := info.ID(); ok {
				ids = append(ids, id)
				w.lastMaps[id] = true
			}
		}
		return nil
	})
	return ids, err
}

// programsOn finds all programs in the kernel that use one of these maps, whoever holds them. Programs
// that were let go of at this moment are given time to go.
func programsOn(maps []ebpf.MapID, most int) (users map[ebpf.ProgramID]bool, err error) {
	for range 200 {
		if users, err = programsOnNow(maps); err != nil || len(users) <= most {
			return users, err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return users, nil
}

func programsOnNow(maps []ebpf.MapID) (map[ebpf.ProgramID]bool, error) {
	users := map[ebpf.ProgramID]bool{}
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, fs.ErrNotExist) {
			return users, nil
		}
		if err != nil {
			return nil, err
		}
		id = next
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			continue
		}
		used, _ := info.MapIDs()
		if slices.ContainsFunc(used, func(m ebpf.MapID) bool { return slices.Contains(maps, m) }) {
			users[id] = true
		}
	}
}

// gone waits until everything that was ever seen is out of the kernel, and says what is not.
func (w *world) gone() (wrong []string) {
	pinned, err := w.pinned()
	if err != nil {
		return []string{err.Error()}
	}
	for _, name := range pinned {
		wrong = append(wrong, "still pinned: "+name)
	}
	until := time.Now().Add(10 * time.Second)
	for id := range w.lastMaps {
		for {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				break
			}
			m.Close()
			if time.Now().After(until) {
				wrong = append(wrong, fmt.Sprintf("map %d is still loaded", id))
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	for id := range w.lastPrograms {
		for {
			p, err := ebpf.NewProgramFromID(id)
			if err != nil {
				break
			}
			p.Close()
			if time.Now().After(until) {
				wrong = append(wrong, fmt.Sprintf("program %d is still loaded", id))
				break
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
	return wrong
}
