package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/cilium/ebpf/rlimit"

	"github.com/levee-xdp/levee/bpf"
)

// config is what a run does.
type config struct {
	quick   bool
	only    []string
	meter   meter
	sizes   bpf.Sizes
	bans4   int
	bans6   int
	addrs   int // in each list of sources; a power of two
	json    string
	svg     string
	docs    string
	strict  bool
	daemon  string // a binary; built if empty
	cases   string
	added   []string // reports of other runs to add
	objects []string // builds of the program to compare with the committed one
}

// bench is a run.
type bench struct {
	config
	report report
	lists4 *lists
	lists6 *lists
}

// part is a chapter of the benchmark.
type part struct {
	name string
	run  func(*bench, context.Context) error
}

var allParts = []part{
	{"program", (*bench).programs},
	{"stages", (*bench).stages},
	{"cpus", (*bench).cpus},
	{"live", (*bench).live},
	{"control", (*bench).control},
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	c, err := flags(os.Args[1:], os.Getenv("QUICK") == "1")
	if errors.Is(err, flag.ErrHelp) {
		return nil
	}
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("loading programs needs root; run it as root")
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return fmt.Errorf("lift the limit of locked memory: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	b := &bench{config: c}
	b.report.Machine = thisMachine()
	b.report.Setup = fmt.Sprintf("%d IPv4 and %d IPv6 bans; lists of %d sources; CPU %d; median and quartiles of %d rounds of %s",
		c.bans4, c.bans6, c.addrs, c.meter.cpu, c.meter.rounds, c.meter.slice)
	failed := b.runParts(ctx, allParts)
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := b.report.add(c.added); err != nil {
		return errors.Join(failed, err)
	}
	if c.quick {
		b.report.Notes = append(b.report.Notes, "a quick run shows that everything runs; its figures say nothing, and are not judged")
		for i := range b.report.Rows {
			b.report.Rows[i].Bound = nil
		}
	}
	b.report.print(os.Stdout)
	if c.json != "" {
		if err := b.report.writeJSON(c.json); err != nil {
			return errors.Join(failed, err)
		}
	}
	if failed != nil {
		return failed // a document with a part missing would read as if there were none
	}
	if c.docs != "" {
		if err := b.report.writeDocs(c.docs); err != nil {
			return err
		}
	}
	if c.svg != "" {
		if err := b.report.writeSVG(c.svg); err != nil {
			return err
		}
	}
	if missed := len(b.report.missed()); c.strict && missed > 0 {
		return fmt.Errorf("%d rows are out of their bounds", missed)
	}
	return nil
}

// runParts runs each part that is asked for. One that fails does not keep the others from being measured.
func (b *bench) runParts(ctx context.Context, all []part) error {
	var failed []string
	for _, p := range all {
		if len(b.only) > 0 && !slices.Contains(b.only, p.name) {
			continue
		}
		start := time.Now()
		b.log("%s …", p.name)
		err := p.run(b, ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			b.log("%s could not run: %s", p.name, err)
			failed = append(failed, p.name)
			continue
		}
		b.log("%s: done in %s", p.name, time.Since(start).Round(100*time.Millisecond))
	}
	if len(failed) > 0 {
		return fmt.Errorf("not run to their end: %s", strings.Join(failed, ", "))
	}
	return nil
}

func flags(args []string, quick bool) (config, error) {
	names := make([]string, len(allParts))
	for i, p := range allParts {
		names[i] = p.name
	}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	c := config{}
	var only string
	f.BoolVar(&c.quick, "quick", quick, "small and short: whether it runs, not how fast (QUICK=1)")
	f.StringVar(&only, "only", "", "parts to run, of "+strings.Join(names, ","))
	f.IntVar(&c.meter.cpu, "cpu", runtime.NumCPU()-1, "CPU to run on")
	f.IntVar(&c.meter.rounds, "rounds", 0, "samples of each figure (default 21; quick 2)")
	f.DurationVar(&c.meter.slice, "slice", 0, "time of a sample (default 20ms; quick 1ms)")
	f.IntVar(&c.bans4, "bans4", 0, "IPv4 bans (default 1,000,000; quick 50,000)")
	f.IntVar(&c.bans6, "bans6", 0, "IPv6 bans (default 100,000; quick 10,000)")
	f.StringVar(&c.json, "json", "", "write the report to this file, too")
	f.StringVar(&c.svg, "svg", "", "draw the program part into this file")
	f.Func("object", "another build of bpf/levee.c, to time beside the committed one in the program part (may be repeated)", func(path string) error {
		c.objects = append(c.objects, path)
		return nil
	})
	f.Func("add", "a file that -json wrote: parts that this run leaves out are taken from there (may be repeated)", func(path string) error {
		c.added = append(c.added, path)
		return nil
	})
	f.StringVar(&c.cases, "cases", "", "only cases of the program part whose name contains this")
	f.StringVar(&c.daemon, "levee", "", "the daemon to measure; built from this tree if empty")
	f.StringVar(&c.docs, "docs", "", "put the report into this document, between its marks")
	f.BoolVar(&c.strict, "strict", false, "fail if a row is out of its bound")
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unknown argument %q", f.Arg(0))
	}
	c.sizes, c.meter.tries = bpf.DefaultSizes(), 4
	defaults := [...]int{21, 1_000_000, 100_000, 1 << 20, int(20 * time.Millisecond)}
	if c.quick {
		// Each run takes the kernel some tens of milliseconds to prepare, whatever its length.
		c.sizes, c.meter.tries = bpf.Sizes{Ban4Entries: 1 << 16, Ban6Entries: 1 << 14, Sources: 1 << 14, Allows: 1 << 14}, 1
		defaults = [...]int{2, 50_000, 10_000, 1 << 16, int(time.Millisecond)}
	}
	if c.meter.rounds < 0 {
		return c, fmt.Errorf("-rounds %d: must be above 0", c.meter.rounds)
	}
	c.meter.rounds = cmp.Or(c.meter.rounds, defaults[0])
	c.bans4 = cmp.Or(c.bans4, defaults[1])
	c.bans6 = cmp.Or(c.bans6, defaults[2])
	c.addrs = defaults[3]
	c.meter.slice = cmp.Or(c.meter.slice, time.Duration(defaults[4]))
	for _, name := range strings.FieldsFunc(only, func(r rune) bool { return r == ',' }) {
		if !slices.Contains(names, name) {
			return c, fmt.Errorf("no part %q: there are %s", name, strings.Join(names, ", "))
		}
		c.only = append(c.only, name)
	}
	return c, nil
}

// few is how often what takes seconds is timed.
func (b *bench) few() int { return min(b.meter.rounds, 5) }

// lists makes the lists of a family once.
func (b *bench) lists(v6 bool) *lists {
	if v6 {
		if b.lists6 == nil {
			b.lists6 = newLists(true, b.bans6, b.addrs)
		}
		return b.lists6
	}
	if b.lists4 == nil {
		b.lists4 = newLists(false, b.bans4, b.addrs)
	}
	return b.lists4
}

func (b *bench) log(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...)
}

func familyName(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}
