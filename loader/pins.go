package loader

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// Defaults of Config.
const (
	DefaultRoot = "/sys/fs/bpf/levee"
	DefaultLock = "/run/levee/lock"
)

var (
	// ErrNoBPFFS says that the root does not lie on a bpf filesystem.
	ErrNoBPFFS = errors.New("no bpf filesystem is mounted there; mount one with: mount -t bpf bpf /sys/fs/bpf")
	// ErrNoSet says that nothing is pinned: no Levee has been started since the host booted, or it was removed.
	ErrNoSet = errors.New("no set is pinned")
)

// pins knows where under a root everything is pinned.
type pins struct {
	root   string
	schema uint32 // of the program whose pins these are
}

// String is the root.
func (p pins) String() string { return p.root }

// rootPins is what is pinned under a root; empty means DefaultRoot.
func rootPins(root string) pins { return pins{cmp.Or(root, DefaultRoot), bpf.Schema} }

func (p pins) set() string            { return filepath.Join(p.root, strconv.FormatUint(uint64(p.schema), 10)) }
func (p pins) fresh() string          { return p.set() + "-new" }
func (p pins) old() string            { return p.set() + "-old" }
func (p pins) links() string          { return filepath.Join(p.root, "links") }
func (p pins) link(pin string) string { return filepath.Join(p.links(), pin) }

func mapPin(set, name string) string { return filepath.Join(set, "maps", name) }

// A bpf filesystem refuses names with dots (EPERM); interfaces of VLANs have them.
var (
	pinEscape   = strings.NewReplacer("%", "%25", ".", "%2e")
	pinUnescape = strings.NewReplacer("%25", "%", "%2e", ".")
)

func pinName(iface string) string { return pinEscape.Replace(iface) }
func ifaceName(pin string) string { return pinUnescape.Replace(pin) }

// movingPin is the pin of a link between two names; no interface's pin is called so.
func movingPin(i int) string { return "%" + strconv.Itoa(i) }

// check says why nothing can be pinned under the root.
func (p pins) check() error {
	if !filepath.IsAbs(p.root) {
		return fmt.Errorf("root %s: not an absolute path", p)
	}
	var st unix.Statfs_t
	dir := filepath.Clean(p.root)
	for err := unix.Statfs(dir, &st); err != nil; err = unix.Statfs(dir, &st) {
		dotted := strings.Contains(filepath.Base(dir), ".")
		if errors.Is(err, unix.EPERM) && dotted {
			return fmt.Errorf("root %s: a bpf filesystem takes no dots in names", p)
		}
		if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("root %s: %w", p, err)
		}
		dir = filepath.Dir(dir)
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("root %s: %w", p, ErrNoBPFFS)
	}
	return nil
}

// sets lists the directories of all sets under the root: of every schema, and those in transit.
func (p pins) sets() ([]string, error) {
	entries, err := os.ReadDir(p.root)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	var dirs []string
	for _, e := range entries {
		name, _, _ := strings.Cut(e.Name(), "-")
		if _, err := strconv.ParseUint(name, 10, 32); err == nil && e.IsDir() {
			dirs = append(dirs, filepath.Join(p.root, e.Name()))
		}
	}
	return dirs, nil
}

// predecessor is the set that a new one is to follow: that of this schema, or else of the newest other
// one; empty if there is none.
func (p pins) predecessor() (string, error) {
	if exists(p.set()) {
		return p.set(), nil
	}
	dirs, err := p.sets()
	if err != nil {
		return "", err
	}
	newest, best := "", uint64(0)
	for _, dir := range dirs {
		if n, err := strconv.ParseUint(filepath.Base(dir), 10, 32); err == nil && n >= best { // not one in transit
			newest, best = dir, n
		}
	}
	return newest, nil
}

// linkPins lists the names of the pins in links.
func (p pins) linkPins() ([]string, error) {
	entries, err := os.ReadDir(p.links())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// recover finishes what a process that was killed left half done.
func (p pins) recover() error {
	if _, err := os.Stat(p.set()); errors.Is(err, fs.ErrNotExist) {
		// Killed between the two renames of swap on a kernel that cannot exchange.
		if err := os.Rename(p.old(), p.set()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("bring back the set: %w", err)
		}
	}
	if err := os.RemoveAll(p.fresh()); err != nil {
		return fmt.Errorf("remove a set that was never used: %w", err)
	}
	return nil
}

// swap puts the fresh set in the place of the pinned one, which becomes old or fresh.
func (p pins) swap() error {
	err := unix.Renameat2(unix.AT_FDCWD, p.fresh(), unix.AT_FDCWD, p.set(), unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		if err != nil {
			return fmt.Errorf("swap sets: %w", err)
		}
		return nil
	}
	return p.swapByRename() // there is nothing to exchange it with, or the kernel is older than 5.16
}

// swapByRename is swap in two steps; recover goes back if the second is not reached.
func (p pins) swapByRename() error {
	if err := os.Rename(p.set(), p.old()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("swap sets: %w", err)
	}
	if err := os.Rename(p.fresh(), p.set()); err != nil {
		return fmt.Errorf("swap sets: %w", err)
	}
	return nil
}

// prune removes every set but the current one.
func (p pins) prune() error {
	dirs, err := p.sets()
	if err != nil {
		return err
	}
	var errs []error
	for _, dir := range slices.DeleteFunc(dirs, func(d string) bool { return d == p.set() }) {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

// removeEmpty removes the root and its empty directories, and leaves those that hold something.
func (p pins) removeEmpty() {
	for _, dir := range []string{p.links(), p.programs(), p.root} {
		_ = os.Remove(dir)
	}
}
