package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1 // something that was promised was broken, or the torture could not be carried out
	exitUsage  = 2
)

var phases = []string{"kills", "sites", "faults", "upgrades"}

func main() {
	if len(os.Args) > 2 {
		switch os.Args[1] {
		case roleFilter:
			fmt.Fprintln(os.Stderr, "torture:", asFilter(os.Args[2:]))
			os.Exit(exitFailed)
		case roleTrace:
			status, err := asTracer(os.Args[2], os.Args[3:])
			if err != nil {
				fmt.Fprintln(os.Stderr, "torture: trace:", err)
				os.Exit(exitFailed)
			}
			os.Exit(status)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("torture", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, `Kills the daemon over and over, fails its system calls and upgrades it under load, and looks whether
anything that it promised was broken. Needs root; touches nothing outside of its own namespaces.

  go run ./scripts/torture [flags]

`)
		flags.PrintDefaults()
		fmt.Fprint(stderr, "\nExit codes: 0 all held, 1 something did not, 2 usage.\n")
	}
	bin := flags.String("levee", "bin/levee", "the `binary` to torture")
	only := flags.String("phase", strings.Join(phases, ","), "the `phases` to run")
	count := flags.Int("kills", 500, "how often to kill the daemon at random points")
	upgradeCount := flags.Int("upgrades", 1000, "how often to upgrade it in place")
	most := flags.Int("most", 0, "how many sites at most, for sites and faults; 0 for all")
	where := flags.String("where", "", "a `pattern` that sites must match, for sites and faults")
	var part share
	flags.Var(&part, "share", "the `share` of the sites, as 2/6, for sites and faults; all if empty")
	sum := flags.String("sum", "", "the `file` in which shares of the faults add up; what is reported is the sum")
	seed := flags.Uint64("seed", uint64(time.Now().UnixNano()), "what chance begins with")
	docs := flags.String("docs", "", "the `document` to put the report into")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitDone
		}
		return exitUsage
	}
	pattern, err := regexp.Compile(*where)
	if err != nil {
		fmt.Fprintln(stderr, "torture:", err)
		return exitUsage
	}
	which := selection{most: *most, pattern: pattern, share: part}
	wanted := strings.Split(*only, ",")
	for _, name := range wanted {
		if !slices.Contains(phases, name) {
			fmt.Fprintf(stderr, "torture: phase %q: not one of %s\n", name, strings.Join(phases, ", "))
			return exitUsage
		}
	}
	log := func(format string, args ...any) { fmt.Fprintf(stdout, format+"\n", args...) }
	log("seed %d", *seed)
	failed := false
	for _, name := range wanted {
		dir, err := os.MkdirTemp("", "levee-torture-")
		if err != nil {
			fmt.Fprintln(stderr, "torture:", err)
			return exitFailed
		}
		var r report
		switch name {
		case "kills":
			r, err = kills(ctx, *bin, dir, *count, *seed, log)
		case "sites":
			r, err = sites(ctx, *bin, dir, which, *seed, log)
		case "faults":
			var found faultsResult
			if found, err = faults(ctx, *bin, dir, which, *seed, log); err == nil && *sum != "" {
				err = addUp(*sum, part, &found)
			}
			r = found
		case "upgrades":
			r, err = upgrades(ctx, *bin, dir, *upgradeCount, *seed, log)
		}
		err = errors.Join(err, os.RemoveAll(dir))
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(stderr, "torture: %s: %v\n", name, err)
			return exitFailed
		}
		log("\n%s\n", r.text())
		failed = failed || len(r.complaints()) > 0
		if *docs != "" {
			if err := writeDocs(*docs, name, *seed, r); err != nil {
				fmt.Fprintln(stderr, "torture:", err)
				return exitFailed
			}
		}
	}
	if failed {
		fmt.Fprintln(stderr, "torture: something that was promised was broken, see above")
		return exitFailed
	}
	return exitDone
}
