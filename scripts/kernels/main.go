package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

type options struct {
	cache    string
	only     string
	tests    string
	packages string
	jobs     int
	accel    string
	cpu      string
	limit    time.Duration
	refresh  bool
	update   bool
	probe    bool
	keep     bool
}

func run(ctx context.Context) error {
	var o options
	flag.StringVar(&o.cache, "cache", filepath.Join(cacheDir(), "levee", "kernels"), "where kernels are kept")
	flag.StringVar(&o.only, "only", "", "test on these alone, separated by commas: "+names()+", host")
	flag.StringVar(&o.packages, "packages", strings.Join(packages, ","), "run the tests of these alone")
	flag.StringVar(&o.tests, "run", "", "run the tests that match this regular expression alone")
	flag.StringVar(&o.accel, "accel", "tcg,thread=multi", "qemu's -accel")
	// qemu 7.2 loses the flags of cmpxchg16b where an interrupt follows it, and kernels use it to allocate.
	flag.StringVar(&o.cpu, "cpu", "max,-cx16", "qemu's -cpu")
	flag.IntVar(&o.jobs, "jobs", 1, "machines at a time; each has two CPUs, of which a verifier keeps one busy")
	flag.DurationVar(&o.limit, "limit", time.Hour, "how long each machine may take; a busy host takes long")
	flag.BoolVar(&o.refresh, "refresh", false, "read Debian's lists again, for newer versions")
	flag.BoolVar(&o.update, "update", false, "keep what is found in results.json, and write docs/kernels.md from it")
	flag.BoolVar(&o.probe, "probe", false, "run no tests: ask for features and the verifier's counts alone; with -update the tests' results of the same release stay")
	flag.BoolVar(&o.keep, "keep", false, "keep the machines' logs, and say where they are")
	flag.Parse()
	for _, p := range o.tested() {
		if !slices.Contains(packages, p) {
			return fmt.Errorf("-packages %q: there are %s", p, strings.Join(packages, ", "))
		}
	}
	if o.update && o.tests != "" {
		return errors.New("-update keeps the results of all tests: leave -run out")
	}
	if o.boots() {
		if err := checkQemu(ctx); err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "levee-kernels-")
	if err != nil {
		return err
	}
	if o.keep {
		fmt.Println("logs are kept in", dir)
	} else {
		defer os.RemoveAll(dir)
	}
	w, err := build(ctx, dir)
	if err != nil {
		return err
	}
	results, broken := w.all(ctx, o)
	known, err := readKept()
	if err != nil {
		return err
	}
	for _, r := range results {
		fmt.Print(r.summary())
	}
	notes, grown := known.compare(results)
	for _, n := range notes {
		fmt.Println(n)
	}
	if o.probe {
		known.keep(results) // whose tests are those of before
	}
	wrong := errors.Join(broken, failures(results))
	switch {
	case !o.update:
		return errors.Join(wrong, grown)
	case wrong != nil && o.probe:
		return fmt.Errorf("%w\nnothing was kept", wrong)
	case wrong != nil:
		wrong = fmt.Errorf("%w\nnothing of this was kept, but what went well", wrong)
	}
	known.keep(slices.DeleteFunc(results, func(r *result) bool { return failures([]*result{r}) != nil }))
	return errors.Join(wrong, known.write())
}

func cacheDir() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return dir
	}
	return "/var/cache"
}

func names() string {
	var list []string
	for _, k := range kernels {
		list = append(list, k.Name)
	}
	return strings.Join(list, ", ")
}

// tested are the packages whose tests are run.
func (o options) tested() []string {
	if o.probe {
		return nil
	}
	return strings.Split(o.packages, ",")
}

// boots says whether any kernel but the host's is to be tested on.
func (o options) boots() bool {
	return slices.ContainsFunc(kernels, func(k kernel) bool { return o.asked(k.Name) })
}

// asked says whether a kernel is to be tested on.
func (o options) asked(name string) bool {
	if o.only == "" {
		return true
	}
	for _, n := range strings.Split(o.only, ",") {
		if n == name {
			return true
		}
	}
	return false
}
