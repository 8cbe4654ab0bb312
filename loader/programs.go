package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// A program and its constants are pinned under the program's number. The link's pin would hold them,
// too, but what is pinned can be opened with the right to the file, while opening by number takes
// CAP_SYS_ADMIN, which a daemon need not have.
//
// The kernel does not give a number twice, so pins follow no renaming; what no link runs is pruned.

func (p pins) programs() string { return filepath.Join(p.root, "programs") }

func (p pins) program(id ebpf.ProgramID) string {
	return filepath.Join(p.programs(), strconv.FormatUint(uint64(id), 10))
}

func programPin(dir string) string   { return filepath.Join(dir, "program") }
func constantsPin(dir string) string { return filepath.Join(dir, "constants") }

// pinProgram pins a program and the map of its constants.
func (p pins) pinProgram(prog *ebpf.Program, constants *ebpf.Map) (err error) {
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("inspect the program: %w", err)
	}
	id, ok := info.ID()
	if !ok {
		return errors.New("inspect the program: the kernel does not tell its number")
	}
	dir := p.program(id)
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin the program: %w", err)
	}
	if err := prog.Pin(programPin(dir)); err != nil {
		return fmt.Errorf("pin the program: %w", err)
	}
	if err := constants.Pin(constantsPin(dir)); err != nil {
		return fmt.Errorf("pin the program's constants: %w", err)
	}
	return nil
}

// unpinProgram lets go of a program that no link runs any more.
func (p pins) unpinProgram(id ebpf.ProgramID) error {
	if id == 0 {
		return nil
	}
	if err := os.RemoveAll(p.program(id)); err != nil {
		return fmt.Errorf("remove the pins of program %d: %w", id, err)
	}
	return nil
}

// unpin is unpinProgram for a program that was loaded here and not put to use.
func (p pins) unpin(prog *ebpf.Program) error {
	info, err := prog.Info()
	if err != nil {
		return fmt.Errorf("inspect the program: %w", err)
	}
	id, _ := info.ID()
	return p.unpinProgram(id)
}

// openProgram opens a program by its pin; one that has none, by its number. It returns an error that
// is unix.EPERM if that takes a privilege that this process lacks.
func (p pins) openProgram(id ebpf.ProgramID) (*ebpf.Program, error) {
	prog, err := ebpf.LoadPinnedProgram(programPin(p.program(id)), nil)
	if errors.Is(err, fs.ErrNotExist) {
		prog, err = ebpf.NewProgramFromID(id)
	}
	if err != nil {
		return nil, fmt.Errorf("open program %d: %w", id, err)
	}
	return prog, nil
}

// openConstants opens the constants of a program, whose map has the number mapID.
func (p pins) openConstants(id ebpf.ProgramID, mapID ebpf.MapID) (*ebpf.Map, error) {
	m, err := ebpf.LoadPinnedMap(constantsPin(p.program(id)), nil)
	if errors.Is(err, fs.ErrNotExist) {
		m, err = ebpf.NewMapFromID(mapID)
	}
	if err != nil {
		return nil, fmt.Errorf("open map %d: %w", mapID, err)
	}
	return m, nil
}

// prunePrograms lets go of every program that no pinned link runs: those that a process loaded and
// was killed before it could attach them.
func (p pins) prunePrograms() error {
	entries, err := os.ReadDir(p.programs())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list programs: %w", err)
	}
	names, err := p.linkPins()
	if err != nil {
		return err
	}
	used := make(map[string]bool)
	for _, pin := range names {
		k, err := p.inspect(pin)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return err
		}
		used[filepath.Base(p.program(k.program))] = true
	}
	var errs []error
	for _, e := range entries {
		if !used[e.Name()] {
			errs = append(errs, os.RemoveAll(filepath.Join(p.programs(), e.Name())))
		}
	}
	return errors.Join(errs...)
}

// notAllowed says that an error is the lack of a privilege.
func notAllowed(err error) bool { return errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) }
