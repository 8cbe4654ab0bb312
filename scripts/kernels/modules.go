package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// wanted are the modules that tests need: what makes interfaces.
var wanted = []string{"virtio_pci", "virtio_net", "veth", "dummy", "bridge", "bonding", "8021q"}

// module is a kernel module, unpacked.
type module struct {
	Name  string
	Bytes []byte
}

// modules returns the wanted modules of an unpacked kernel and all that they need, in the order in which
// they have to be loaded. What is no module there is part of the kernel itself.
func modules(dir string) ([]module, error) {
	files := make(map[string]string)
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(filepath.Base(path), ".ko"); ok {
			files[canonical(name)] = path
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var all []module
	var add func(name string) error
	add = func(name string) error {
		file, ok := files[name]
		if !ok || slices.ContainsFunc(all, func(m module) bool { return m.Name == name }) {
			return nil
		}
		b, err := unpacked(file)
		if err != nil {
			return err
		}
		needs, err := dependencies(b)
		if err != nil {
			return fmt.Errorf("module %s: %w", file, err)
		}
		for _, other := range needs {
			if err := add(other); err != nil {
				return err
			}
		}
		all = append(all, module{name, b})
		return nil
	}
	for _, name := range wanted {
		if err := add(canonical(name)); err != nil {
			return nil, err
		}
	}
	if !slices.ContainsFunc(all, func(m module) bool { return m.Name == "virtio_net" }) {
		return nil, fmt.Errorf("%s has no virtio_net among its %d modules", dir, len(files))
	}
	return all, nil
}

// canonical is a module's name as its dependants know it.
func canonical(name string) string { return strings.ReplaceAll(name, "-", "_") }

// unpacked reads a module, which Debian has compressed since 2024.
func unpacked(file string) ([]byte, error) {
	if !strings.HasSuffix(file, ".xz") {
		return os.ReadFile(file)
	}
	out, err := exec.Command("xz", "-dc", file).Output()
	if err != nil {
		return nil, fmt.Errorf("unpack %s: %w", file, explain(err))
	}
	return out, nil
}

// dependencies reads what a module says of itself in its section .modinfo: strings of key=value.
func dependencies(b []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("it has no section .modinfo")
	}
	text, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(text), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			var names []string
			for _, name := range strings.Split(list, ",") {
				names = append(names, canonical(name))
			}
			return names, nil
		}
	}
	return nil, nil
}
