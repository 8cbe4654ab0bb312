package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/levee-xdp/levee/bpf"
	"golang.org/x/sys/unix"
)

// DefaultCache is where compiled objects are kept if CompileConfig does not say.
const DefaultCache = "/var/cache/levee"

// ErrNoClang says that there is no clang to compile with. The committed object does as well.
var ErrNoClang = errors.New("no clang was found; install clang 14 or newer, or go without compiling")

// clangMin is the oldest clang whose BPF code is known to pass; clangV4 the first that knows the
// instructions of CPU version 4.
const clangMin, clangV4 = 14, 18

// CompileConfig says how the program is compiled on this host.
type CompileConfig struct {
	CacheDir string // for objects, by content; DefaultCache if empty
	Clang    string // path or name; if empty, clang or else the newest clang-N of $PATH
}

// CompileReport says what Compile did.
type CompileReport struct {
	Clang   string        // its path
	Version string        // the first line of its --version
	CPU     string        // the instruction set that was compiled for: v3 or v4
	Object  string        // the object's file in the cache
	Cached  bool          // it was there already
	Took    time.Duration // to compile, or to find it
}

// Compile compiles the embedded sources for this host's kernel and CPU, or takes the object of an
// earlier time from the cache: same sources, same compiler, same flags. The result has the same maps
// and constants as the committed object, or is refused. Returns ErrNoClang if there is none.
func Compile(ctx context.Context, c CompileConfig) (*ebpf.CollectionSpec, CompileReport, error) {
	start := time.Now()
	var r CompileReport
	clang, err := findClang(c.Clang)
	if err != nil {
		return nil, r, err
	}
	r.Clang = clang
	var major int
	if r.Version, major, err = clangVersion(ctx, clang); err != nil {
		return nil, r, err
	}
	if major < clangMin {
		return nil, r, fmt.Errorf("compile with %s (%s): %w", clang, r.Version, ErrNoClang)
	}
	r.CPU = "v3"
	if major >= clangV4 && haveV4() {
		r.CPU = "v4"
	}
	flags := slices.Concat(bpf.CompileFlags, []string{"-Wno-error", "-mcpu=" + r.CPU}) // newer compilers warn of more
	sources, key, err := sourcesAndKey(r.Version, flags)
	if err != nil {
		return nil, r, err
	}

	cache := c.CacheDir
	if cache == "" {
		cache = DefaultCache
	}
	if err := privateDir(cache); err != nil {
		return nil, r, err
	}
	r.Object = filepath.Join(cache, "levee-"+key+".o")
	spec, err := loadObject(r.Object)
	if r.Cached = err == nil; !r.Cached { // not there, or broken: it is made again
		if err := compile(ctx, clang, flags, sources, r.Object); err != nil {
			return nil, r, err
		}
		if spec, err = loadObject(r.Object); err != nil {
			return nil, r, err
		}
	}
	r.Took = time.Since(start)
	return spec, r, nil
}

// sourcesAndKey returns the sources by name, and the digest of all that an object depends on.
func sourcesAndKey(version string, flags []string) (map[string][]byte, string, error) {
	h := sha256.New()
	h.Write(fmt.Appendf(nil, "%q %q\n", version, flags))
	sources := make(map[string][]byte)
	err := fs.WalkDir(bpf.Sources, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(bpf.Sources, path)
		if err != nil {
			return err
		}
		sources[path] = b
		h.Write(fmt.Appendf(nil, "%q %d\n", path, len(b)))
		h.Write(b)
		return nil
	})
	if err != nil {
		return nil, "", fmt.Errorf("read the embedded sources: %w", err)
	}
	return sources, hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// compile writes the sources to a folder of their own, compiles them there and moves the object to
// its place, whole.
func compile(ctx context.Context, clang string, flags []string, sources map[string][]byte, object string) error {
	dir, err := os.MkdirTemp(filepath.Dir(object), "build-")
	if err != nil {
		return fmt.Errorf("compile: %w", err)
	}
	defer os.RemoveAll(dir)
	for path, b := range sources {
		file := filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("compile: %w", err)
		}
		if err := os.WriteFile(file, b, 0o600); err != nil {
			return fmt.Errorf("compile: %w", err)
		}
	}
	args := slices.Concat(flags, []string{"-ffile-prefix-map=" + dir + "=/levee", "-c", "levee.c", "-o", "levee.o"})
	cmd := exec.CommandContext(ctx, clang, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TMPDIR="+dir)
	cmd.WaitDelay = time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile with %s: %w\n%s", clang, err, excerpt(out))
	}
	if err := os.Rename(filepath.Join(dir, "levee.o"), object); err != nil {
		return fmt.Errorf("keep the compiled object: %w", err)
	}
	return nil
}

// excerpt keeps what a person reads of a compiler's complaints.
func excerpt(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) > 20 {
		lines = append(lines[:20], fmt.Sprintf("… and %d lines more", len(lines)-20))
	}
	return strings.Join(lines, "\n")
}

func loadObject(path string) (*ebpf.CollectionSpec, error) {
	spec, err := ebpf.LoadCollectionSpec(path)
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	committed, err := bpf.LoadLevee()
	if err != nil {
		return nil, err
	}
	if err := sameShape(spec, committed); err != nil {
		return nil, fmt.Errorf("object %s is not like the committed one: %w", path, err)
	}
	return spec, nil
}

// sameShape says in what the maps, constants and programs of two specs differ.
func sameShape(got, want *ebpf.CollectionSpec) error {
	var errs []error
	differ := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for name, w := range tables(want) {
		g := got.Maps[name]
		switch {
		case g == nil:
			differ("map %s is missing", name)
		case g.Type != w.Type || g.KeySize != w.KeySize || g.ValueSize != w.ValueSize ||
			g.MaxEntries != w.MaxEntries || g.Flags != w.Flags:
			differ("map %s is %v, wanted %v", name, g, w)
		}
	}
	for name, w := range want.Variables {
		g := got.Variables[name]
		switch {
		case g == nil:
			differ("constant %s is missing", name)
		case g.Size() != w.Size() || g.SectionName != w.SectionName:
			differ("constant %s has %d bytes in %s, wanted %d in %s", name, g.Size(), g.SectionName, w.Size(), w.SectionName)
		}
	}
	for name, w := range want.Programs {
		if g := got.Programs[name]; g == nil || g.Type != w.Type {
			differ("program %s is missing", name)
		}
	}
	if g, w := len(tables(got)), len(tables(want)); g > w {
		differ("there are %d maps more", g-w)
	}
	return errors.Join(errs...)
}

// privateDir makes a folder that only this user can write to, for what is loaded from it runs in the
// kernel.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cache of compiled objects: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return fmt.Errorf("cache of compiled objects %s: %w", dir, err)
	}
	if int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return fmt.Errorf("cache of compiled objects %s: others can write to it; chown it to this user and chmod it to 700", dir)
	}
	return nil
}

var clangNumbered = regexp.MustCompile(`^clang-([0-9]+)$`)

// findClang returns the path of the wanted clang, or of clang, or of the newest clang-N.
func findClang(want string) (string, error) {
	if want != "" {
		path, err := exec.LookPath(want)
		if err != nil {
			return "", fmt.Errorf("%w: %w", ErrNoClang, err)
		}
		return path, nil
	}
	if path, err := exec.LookPath("clang"); err == nil {
		return path, nil
	}
	best, name := 0, ""
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		entries, _ := os.ReadDir(dir) // a folder of $PATH that is not there is no error
		for _, e := range entries {
			if m := clangNumbered.FindStringSubmatch(e.Name()); m != nil {
				if n, err := strconv.Atoi(m[1]); err == nil && n > best {
					best, name = n, e.Name()
				}
			}
		}
	}
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	return "", ErrNoClang
}

var clangMajor = regexp.MustCompile(`clang version ([0-9]+)\.`)

func clangVersion(ctx context.Context, clang string) (line string, major int, err error) {
	cmd := exec.CommandContext(ctx, clang, "--version")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err != nil {
		return "", 0, fmt.Errorf("ask %s for its version: %w", clang, err)
	}
	line, _, _ = strings.Cut(string(out), "\n")
	m := clangMajor.FindStringSubmatch(line)
	if m == nil {
		return line, 0, fmt.Errorf("ask %s for its version: it answered %q: %w", clang, line, ErrNoClang)
	}
	major, err = strconv.Atoi(m[1])
	return line, major, err
}
