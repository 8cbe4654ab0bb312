package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/scripts/kernels/plan"
)

// packages hold the tests to run.
var packages = []string{"bpf", "maps", "loader"}

// probeStep is the name of the step that asks what the kernel can do.
const probeStep = "probe"

// work is what the machines are made of.
type work struct {
	dir  string            // for temporary files
	bin  map[string]string // the guest and the test binaries, by name
	tree map[string][]byte // the sources and pages that tests read, by path in the repository
}

// build makes the static binaries.
func build(ctx context.Context, dir string) (*work, error) {
	w := &work{dir: dir, bin: make(map[string]string), tree: make(map[string][]byte)}
	for _, p := range packages {
		w.bin[p] = filepath.Join(dir, p+".test")
		if err := static(ctx, "test", "-c", "-o", w.bin[p], "./"+p); err != nil {
			return nil, err
		}
	}
	w.bin["guest"] = filepath.Join(dir, "guest")
	if err := static(ctx, "build", "-o", w.bin["guest"], "./scripts/kernels/guest"); err != nil {
		return nil, err
	}
	files, err := exec.CommandContext(ctx, "git", append([]string{"ls-files", "--", "docs/*.md"}, packages...)...).Output()
	if err != nil {
		return nil, fmt.Errorf("list the sources: %w", explain(err))
	}
	for name := range strings.Lines(string(files)) {
		name = strings.TrimSpace(name)
		if w.tree[name], err = os.ReadFile(name); err != nil {
			return nil, err
		}
	}
	return w, nil
}

func static(ctx context.Context, verb string, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{verb, "-trimpath", "-ldflags=-s -w"}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s %s: %w\n%s", verb, strings.Join(args, " "), err, out)
	}
	return nil
}

// steps are what is run on each kernel; bin and tree say where the binaries and the sources are there.
func steps(bin func(name string) string, tree string, o options, env ...string) []plan.Step {
	list := []plan.Step{{Name: probeStep, Command: []string{bin("guest"), "probe"}, Dir: tree, Limit: 5 * time.Minute}}
	for _, p := range o.tested() {
		command := []string{bin(p), "-test.v=test2json", "-test.short", "-test.timeout=" + o.limit.String()}
		if o.tests != "" {
			command = append(command, "-test.run="+o.tests)
		}
		list = append(list, plan.Step{Name: p, Command: command, Dir: filepath.Join(tree, p), Env: env, Limit: o.limit + time.Minute})
	}
	return list
}

// all runs the steps on each kernel: machines o.jobs at a time, the host when they are done. A machine
// that does not come to its end keeps the others from nothing.
func (w *work) all(ctx context.Context, o options) ([]*result, error) {
	asked := slices.DeleteFunc(slices.Clone(kernels), func(k kernel) bool { return !o.asked(k.Name) })
	dirs, err := fetchAll(asked, o)
	if err != nil {
		return nil, err
	}
	results, errs := make([]*result, len(asked)+1), make([]error, len(asked)+1)
	var group errgroup.Group
	group.SetLimit(max(o.jobs, 1))
	for i, k := range asked {
		group.Go(func() error {
			var err error
			if results[i], err = w.boot(ctx, k, dirs[i], o); err != nil {
				errs[i] = fmt.Errorf("kernel %s: %w", k.Name, err)
			}
			return nil
		})
	}
	_ = group.Wait() // each has its own error
	if o.asked("host") {
		fmt.Println("the host's own kernel")
		r, err := w.host(ctx, o)
		if err != nil {
			errs[len(asked)] = fmt.Errorf("the host's own kernel: %w", err)
		}
		results[len(asked)] = r
	}
	return slices.DeleteFunc(results, func(r *result) bool { return r == nil }), errors.Join(errs...)
}

// fetchAll returns the kernels' directories.
func fetchAll(asked []kernel, o options) (dirs []string, err error) {
	if len(asked) == 0 {
		return nil, nil
	}
	s, err := newStore(o.cache)
	if err != nil {
		return nil, err
	}
	unknown := slices.ContainsFunc(asked, func(k kernel) bool { _, err := s.newest(k); return err != nil })
	if unknown || o.refresh {
		if err := s.update(); err != nil {
			return nil, err
		}
	}
	for _, k := range asked {
		dir, version, err := s.fetch(k)
		if err != nil {
			return nil, fmt.Errorf("kernel %s: %w", k.Name, err)
		}
		fmt.Printf("kernel %s: %s of Debian %s\n", k.Name, version, k.Suite)
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// host runs the steps on this host.
func (w *work) host(ctx context.Context, o options) (*result, error) {
	tree, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	var log bytes.Buffer
	begin := time.Now()
	for _, step := range steps(func(name string) string { return w.bin[name] }, tree, o) {
		fmt.Fprintf(&log, "\n%s %s\n", plan.Begin, step.Name)
		limited, cancel := context.WithTimeout(ctx, step.Limit)
		cmd := exec.CommandContext(limited, step.Command[0], step.Command[1:]...)
		cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = step.Dir, append(os.Environ(), step.Env...), &log, &log
		err := cmd.Run()
		cancel()
		if cmd.ProcessState == nil {
			return nil, err
		}
		fmt.Fprintf(&log, "\n%s %s %d\n", plan.End, step.Name, cmd.ProcessState.ExitCode())
	}
	fmt.Fprintln(&log, plan.Done)
	r, err := read(&log)
	if err == nil {
		r.Host, r.took = true, time.Since(begin)
	}
	return r, err
}

// boot runs the steps in a machine with a kernel.
func (w *work) boot(ctx context.Context, k kernel, dir string, o options) (*result, error) {
	image, err := glob(dir, "boot/vmlinuz*", "usr/lib/modules/*/vmlinuz")
	if err != nil {
		return nil, err
	}
	mods, err := modules(dir)
	if err != nil {
		return nil, err
	}
	initrd := filepath.Join(w.dir, k.Name+".cpio.gz")
	if err := w.pack(initrd, mods, o); err != nil {
		return nil, err
	}
	m := machine{image: image, initrd: initrd, log: filepath.Join(w.dir, k.Name+".log"), console: filepath.Join(w.dir, k.Name+".console"), accel: o.accel, cpu: o.cpu}
	begin := time.Now()
	limited, cancel := context.WithTimeout(ctx, o.limit)
	defer cancel()
	ran := m.run(limited)
	f, err := os.Open(m.log)
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", ran, err)
	}
	defer f.Close()
	r, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("%w; the end of its console:\n%s", errors.Join(err, ran), tail(m.console, 30))
	}
	r.took = time.Since(begin)
	return r, ran
}

func glob(dir string, patterns ...string) (string, error) {
	for _, p := range patterns {
		if files, err := filepath.Glob(filepath.Join(dir, p)); err == nil && len(files) == 1 {
			return files[0], nil
		}
	}
	return "", fmt.Errorf("%s holds no kernel at %s", dir, strings.Join(patterns, " or "))
}

// pack writes the initramfs.
func (w *work) pack(name string, mods []module, o options) error {
	a, err := newArchive(name)
	if err != nil {
		return err
	}
	bin := func(name string) string {
		if name == "guest" {
			return "/init"
		}
		return "/bin/" + name
	}
	p := plan.Plan{Steps: steps(bin, "/src", o, "LEVEE_VIRTIO=eth0,eth1", "HOME=/tmp")}
	for i, m := range mods {
		file := fmt.Sprintf("/modules/%02d-%s.ko", i, m.Name)
		a.add(file, m.Bytes)
		p.Modules = append(p.Modules, file)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	a.add(plan.File, text)
	for name, file := range w.bin {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		a.add(bin(name), b)
	}
	for name, b := range w.tree {
		a.add("/src/"+name, b)
	}
	return a.close()
}
