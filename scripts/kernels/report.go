package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

const (
	keptFile = "scripts/kernels/results.json"
	pageFile = "docs/kernels.md"
)

// kept are the results of the last runs that were kept, by kernel series.
type kept map[string]*result

func readKept() (kept, error) {
	text, err := os.ReadFile(keptFile)
	if errors.Is(err, fs.ErrNotExist) {
		return make(kept), nil
	}
	if err != nil {
		return nil, err
	}
	k := make(kept)
	if err := json.Unmarshal(text, &k); err != nil {
		return nil, fmt.Errorf("%s: %w", keptFile, err)
	}
	return k, nil
}

// keep puts new results in the place of those of the same series; of packages that were not tested this
// time it keeps those of the same release.
func (k kept) keep(results []*result) {
	for _, r := range results {
		if old := k[r.series()]; old != nil && old.Release == r.Release {
			for _, t := range old.Tests {
				if !slices.ContainsFunc(r.Tests, func(n *tests) bool { return n.Package == t.Package }) {
					r.Tests = append(r.Tests, t)
				}
			}
		}
		slices.SortFunc(r.Tests, func(a, b *tests) int { return strings.Compare(a.Package, b.Package) })
		k[r.series()] = r
	}
}

// write writes what is kept, and the page.
func (k kept) write() error {
	text, err := json.MarshalIndent(k, "", "\t")
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(keptFile, append(text, '\n'), 0o644), os.WriteFile(pageFile, []byte(k.page()), 0o644))
}

// inOrder is what is kept, older kernels first.
func (k kept) inOrder() []*result {
	list := slices.Collect(maps.Values(k))
	slices.SortFunc(list, func(a, b *result) int {
		var x, y [2]int
		_, _ = fmt.Sscanf(a.series(), "%d.%d", &x[0], &x[1]) // what is no number is version 0
		_, _ = fmt.Sscanf(b.series(), "%d.%d", &y[0], &y[1])
		return slices.Compare(x[:], y[:])
	})
	return list
}

// growth is how much more the verifier may look at than it did, in percent.
const growth = 10

// compare returns an error for what has grown by more than growth, and notes about what else changed.
func (k kept) compare(results []*result) (notes []string, err error) {
	var errs []error
	for _, r := range results {
		had := k[r.series()]
		if had == nil {
			notes = append(notes, fmt.Sprintf("%s: no results of this series are kept in %s", r.series(), keptFile))
			continue
		}
		for _, variant := range slices.Sorted(maps.Keys(r.Instructions)) {
			was, is := int(had.Instructions[variant]), int(r.Instructions[variant])
			switch {
			case was == 0:
				notes = append(notes, fmt.Sprintf("%s: no count of %q is kept in %s", r.series(), variant, keptFile))
			case is*100 > was*(100+growth):
				errs = append(errs, fmt.Errorf("%s: the verifier looks at %d instructions of the program (%s), %d %% of the %d kept; "+
					"simplify it, or keep the new count by `make test-kernels UPDATE=1`", r.series(), is, variant, is*100/was, was))
			case is*100 < was*(100-growth):
				notes = append(notes, fmt.Sprintf("%s: the verifier looks at %d instructions of the program (%s), %d %% of the %d kept",
					r.series(), is, variant, is*100/was, was))
			}
		}
	}
	return notes, errors.Join(errs...)
}

// page is docs/kernels.md.
func (k kept) page() string {
	results := k.inOrder()
	var b strings.Builder
	b.WriteString(`# Kernels

Written by ` + "`make test-kernels UPDATE=1`" + `, which boots Debian's cloud kernels in qemu with two virtio-net
interfaces, and runs the tests of the program, its tables and the loader inside. What is missing on a kernel
is said by ` + "`levee doctor`" + `, and Levee does without it.

The kernels below are what Levee is tested on: take 6.1 or newer. From 5.15 on a kernel should do, for all
that is marked as needed came earlier; but none before 6.1 was tried, and its verifier may refuse the program.
Then the daemon says so, and nothing is attached. On anything older than 5.15 it does not start.

## Features

`)
	head := []string{"feature", "since", "what for"}
	for _, r := range results {
		head = append(head, r.title())
	}
	row(&b, head...)
	row(&b, repeat("---", len(head))...)
	for _, f := range results[len(results)-1].Features {
		cells := []string{f.Name, f.Since, f.Use}
		if f.Needed {
			cells[2] += " (needed)"
		}
		for _, r := range results {
			cells = append(cells, r.has(f.Name))
		}
		row(&b, cells...)
	}

	b.WriteString("\n## Tests\n\nEach row is of the last run of that package's tests on that kernel.\n\n")
	row(&b, "kernel", "release", "package", "passed", "skipped", "failed")
	row(&b, repeat("---", 6)...)
	for _, r := range results {
		for _, t := range r.Tests {
			row(&b, r.title(), r.Release, t.Package, fmt.Sprint(t.Passed), fmt.Sprint(len(t.Skipped)), fmt.Sprint(t.Failed()))
		}
	}
	b.WriteString("\nSkipped, and why:\n\n")
	for _, line := range skips(results) {
		b.WriteString("- " + line + "\n")
	}

	b.WriteString("\n## What the verifier looks at\n\nInstructions, by variant of the program; kernels stop at a million. A count that grows by more than\n" +
		fmt.Sprintf("%d %% over the one kept in `%s` fails the run.\n\n", growth, keptFile))
	head = []string{"variant"}
	for _, r := range results {
		head = append(head, r.title())
	}
	row(&b, head...)
	row(&b, repeat("---", len(head))...)
	for _, variant := range slices.Sorted(maps.Keys(results[0].Instructions)) {
		cells := []string{variant}
		for _, r := range results {
			cells = append(cells, fmt.Sprint(r.Instructions[variant]))
		}
		row(&b, cells...)
	}
	return b.String()
}

// has is the word for a feature of a kernel.
func (r *result) has(feature string) string {
	for _, f := range r.Features {
		if f.Name == feature {
			return map[bool]string{true: "yes", false: "no"}[f.Present]
		}
	}
	return "not asked"
}

// title is a kernel's column.
func (r *result) title() string {
	if r.Host {
		return r.series() + " (host)"
	}
	return r.series()
}

// skips names each test that was skipped, the kernels and the reason.
func skips(results []*result) []string {
	where := make(map[string][]string)
	for _, r := range results {
		for _, t := range r.Tests {
			for _, o := range t.Skipped {
				what := fmt.Sprintf("`%s` of %s: %s", o.Name, t.Package, o.Why)
				where[what] = append(where[what], r.title())
			}
		}
	}
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(where)) {
		lines = append(lines, fmt.Sprintf("%s (%s)", what, strings.Join(where[what], ", ")))
	}
	return lines
}

func row(b *strings.Builder, cells ...string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

func repeat(s string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = s
	}
	return all
}
