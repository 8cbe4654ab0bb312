package main

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// control is the fifth part: the control plane.
func (b *bench) control(ctx context.Context) error {
	prefixes := slices.Concat(b.lists(false).bans, b.lists(true).bans)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(prefixes), func(i, j int) {
		prefixes[i], prefixes[j] = prefixes[j], prefixes[i]
	})
	prefixes = prefixes[:len(b.lists(false).bans)] // a million of both families together
	dir, err := os.MkdirTemp("", "levee-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	list := filepath.Join(dir, "list.txt")
	if err := writeList(list, prefixes); err != nil {
		return err
	}
	if err := b.tableRows(ctx, list, prefixes); err != nil {
		return err
	}
	if err := b.setRows(dir, prefixes); err != nil {
		return err
	}
	if err := b.daemonRows(ctx, dir, list); err != nil {
		return fmt.Errorf("the daemon: %w", err)
	}
	return nil
}

// seconds makes a row of times.
func seconds(what string, samples []float64, limit float64) row {
	r := row{Part: "control", Case: "kernel tables", Subject: what, Unit: "s", Figure: figureOf(samples)}
	if limit > 0 {
		r = r.atMost(limit)
		r.Bound.Absolute = true
	}
	return r
}

// What is timed of the tables alone.
const (
	readAndPut = "a file, read and put"
	putAll     = "put all"
	syncSame   = "sync, nothing new"
	syncHalf   = "sync, half of it new"
	openFull   = "open a full set"
	oneChange  = "one change"
)

// tableTimes are seconds, by what is timed, and the memory of a full set in bytes.
type tableTimes struct {
	times  map[string][]float64
	memory uint64
}

func (t *tableTimes) took(what string, start time.Time) {
	t.times[what] = append(t.times[what], time.Since(start).Seconds())
}

// tableRows times the tables alone, without a daemon.
func (b *bench) tableRows(ctx context.Context, list string, prefixes []netip.Prefix) error {
	other := slices.Concat(prefixes[:len(prefixes)/2],
		newBans(rand.New(rand.NewPCG(3, 4)), false, len(prefixes)/2))
	t := &tableTimes{times: make(map[string][]float64)}
	for range b.few() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.file(b.sizes, list); err != nil {
			return err
		}
		if err := t.changes(b.sizes, prefixes, other); err != nil {
			return err
		}
	}
	times := t.times
	full := len(prefixes) >= 1_000_000
	bounds := map[string]float64{}
	if full {
		bounds[putAll], bounds[readAndPut] = 0.2, 1.5
	}
	for _, what := range []string{putAll, readAndPut, syncSame, syncHalf, openFull} {
		r := seconds(what, times[what], bounds[what])
		r.Note = fmt.Sprintf("%d prefixes", len(prefixes))
		b.report.Rows = append(b.report.Rows, r)
	}
	changes := times[oneChange]
	slices.Sort(changes)
	at := func(q float64) float64 { return changes[int(q*float64(len(changes)-1))] * 1e6 }
	b.report.Rows = append(b.report.Rows, row{Part: "control", Case: "kernel tables", Subject: oneChange, Unit: "us",
		Figure: figure{at(0.5), at(0.25), at(0.75)},
		Note:   fmt.Sprintf("p99 %s us, p99.9 %s us", number(at(0.99)), number(at(0.999)))})
	r := row{Part: "control", Case: "kernel tables", Subject: "memory", Unit: "MB", Note: "by the kernel's account"}
	if b.sizes == bpf.DefaultSizes() {
		r.Note = "default sizes, " + r.Note
	}
	mb := float64(t.memory) / 1e6
	r.Figure = figure{mb, mb, mb}
	b.report.Rows = append(b.report.Rows, r.atMost(150))
	return nil
}

// file fills empty tables with what a file lists.
func (t *tableTimes) file(sizes bpf.Sizes, list string) error {
	sh, err := newShield(sizes)
	if err != nil {
		return err
	}
	defer sh.close()
	start := time.Now()
	read, err := readList(list)
	if err != nil {
		return err
	}
	if _, err := sh.tables.Bans.PutAll(entries(read)); err != nil {
		return err
	}
	t.took(readAndPut, start)
	return nil
}

// changes fills empty tables, opens them once more, and changes them: to what is there already, to others
// of which half is there, and one by one.
func (t *tableTimes) changes(sizes bpf.Sizes, prefixes, other []netip.Prefix) error {
	sh, err := newShield(sizes)
	if err != nil {
		return err
	}
	defer sh.close()
	start := time.Now()
	if _, err := sh.tables.Bans.PutAll(entries(prefixes)); err != nil {
		return err
	}
	t.took(putAll, start)
	start = time.Now()
	tables, err := maps.Open(sh.maps)
	if err != nil {
		return err
	}
	t.took(openFull, start)
	if err := tables.Close(); err != nil {
		return err
	}
	start = time.Now()
	if _, err := sh.tables.Bans.Sync(entries(prefixes)); err != nil {
		return err
	}
	t.took(syncSame, start)
	start = time.Now()
	if _, err := sh.tables.Bans.Sync(entries(other)); err != nil {
		return err
	}
	t.took(syncHalf, start)
	for _, p := range prefixes[:1000] {
		start = time.Now()
		if err := sh.tables.Bans.Put(maps.Ban{Prefix: p, List: 2, Expires: bpf.Forever}); err != nil {
			return err
		}
		t.took(oneChange, start)
	}
	t.memory, err = memoryOf(sh)
	return err
}

// memoryOf is what the kernel accounts a set's maps with.
func memoryOf(sh *shield) (sum uint64, err error) {
	for name, m := range sh.maps {
		info, err := m.Info()
		if err != nil {
			return 0, fmt.Errorf("read %s's info: %w", name, err)
		}
		n, _ := info.Memlock() // 0 for an empty trie
		sum += n
	}
	return sum, nil
}

// setRows times what a restart does with a full set: loading and pinning it, and adopting it.
func (b *bench) setRows(dir string, prefixes []netip.Prefix) error {
	root := pinsRoot()
	defer b.removePins(root)
	var made, adopted []float64
	for round := range max(2, b.few()) {
		start := time.Now()
		set, err := loader.Open(loader.Config{Root: root, Lock: filepath.Join(dir, "lock"), Sizes: b.sizes, Features: bpf.DefaultFeatures()})
		if err != nil {
			return err
		}
		tables, err := maps.Open(set.Maps())
		if err != nil {
			return err
		}
		took := time.Since(start).Seconds()
		if round == 0 {
			made = append(made, took)
			_, err = tables.Bans.PutAll(entries(prefixes))
		} else {
			if was, why := set.Adopted(); !was {
				return fmt.Errorf("the set was not adopted: %s", why)
			}
			adopted = append(adopted, took)
			start = time.Now()
			_, err = tables.Bans.Sync(entries(prefixes))
			adopted[len(adopted)-1] += time.Since(start).Seconds()
		}
		if err != nil {
			return err
		}
		if err := tables.Close(); err != nil {
			return err
		}
		if err := set.Close(); err != nil {
			return err
		}
	}
	b.report.Rows = append(b.report.Rows, seconds("make and pin a set", made, 0), seconds("adopt a full set and sync", adopted, 0))
	return nil
}

// pinsRoot is where this run's daemons pin what they load.
func pinsRoot() string { return fmt.Sprintf("/sys/fs/bpf/levee-bench-%d", os.Getpid()) }

func (b *bench) removePins(root string) {
	if _, err := loader.Remove(root); err != nil {
		b.log("%s", err)
	}
	_ = os.Remove(root)
}

func writeList(path string, prefixes []netip.Prefix) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	for _, p := range prefixes {
		fmt.Fprintln(w, p)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

func readList(path string) (prefixes []netip.Prefix, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	for s.Scan() {
		p, err := netip.ParsePrefix(s.Text())
		if err != nil {
			return nil, err
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, s.Err()
}
