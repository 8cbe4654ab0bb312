package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Exit codes.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitMissing     = 3 // something that the lab needs is not there
	exitRefused     = 4 // to flood what is not the lab's own
	exitNotHeld     = 5 // all was measured, and the client was not served as the shield promises
	exitInterrupted = 130
)

// maxTime is what the lab allows itself by default; it ends then, done or not.
const maxTime = 58 * time.Second

const defaultDuration = 500 * time.Millisecond

func main() {
	asRole()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command is the lab's command line.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, `Floods a web server in a network of its own, without Levee and with it, and measures what a
client of that server sees. Needs root; touches nothing outside of its own namespaces.

  go run ./scripts/lab [flags]

`)
		flags.PrintDefaults()
		fmt.Fprint(stderr, "\nScenarios:\n")
		for _, s := range scenarios() {
			fmt.Fprintf(stderr, "  %-9s  %s, %s/s\n", s.Name, s.What, short(float64(s.rate)))
		}
		fmt.Fprint(stderr, "\nExit codes: 0 the shield held, 1 failed, 2 usage, 3 something is missing, 4 refused, 5 the shield did not hold,\n130 interrupted.\n")
	}
	levee := flags.String("levee", "bin/levee", "the `binary` to run")
	names := flags.String("scenario", "", "the `scenarios` to run, with commas between them (default all)")
	version := flags.Int("family", 0, "4 or 6: one `version` of IP alone (default both)")
	duration := flags.Duration("duration", defaultDuration, "how long each measurement takes")
	asJSON := flags.Bool("json", false, "print the result as JSON")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitDone
		}
		return exitUsage
	}
	o, err := newOptions(*levee, *names, *version, *duration, flags.Args())
	if err != nil {
		fmt.Fprintln(stderr, "lab:", err)
		return exitUsage
	}
	progress := stdout
	if *asJSON {
		progress = stderr
	}
	o.Progress = func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }

	res, err := runBounded(ctx, o)
	if err != nil {
		if part := res.finished(); len(part.Rows) > 0 && !*asJSON && ctx.Err() == nil {
			fmt.Fprintf(stdout, "\n%s", part)
		}
		fmt.Fprintln(stderr, "lab:", err)
		return exitCode(ctx, err)
	}
	return report(res, *asJSON, stdout, stderr)
}

// report prints a whole result, and returns the exit code that it deserves.
func report(res result, asJSON bool, stdout, stderr io.Writer) int {
	var err error
	if asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		err = encoder.Encode(res)
	} else {
		_, err = fmt.Fprintf(stdout, "\n%s", res)
	}
	if err != nil {
		fmt.Fprintln(stderr, "lab: write the result:", err)
		return exitFailed
	}
	if !res.Held {
		for _, w := range res.broken() {
			fmt.Fprintf(stderr, "lab: %s %s: the shield did not hold: %s; in calm: %s\n", w.Scenario, w.Family, w.With, res.calm(w.Family).With)
		}
		return exitNotHeld
	}
	return exitDone
}

func newOptions(levee, names string, version int, duration time.Duration, rest []string) (o options, err error) {
	o = options{Levee: levee, Families: []int{4, 6}, Duration: duration}
	if len(rest) > 0 {
		return o, fmt.Errorf("unknown argument %q", rest[0])
	}
	if duration < 100*time.Millisecond || duration > 10*time.Second {
		return o, fmt.Errorf("duration %s: must be 100ms to 10s", duration)
	}
	switch version {
	case 0:
	case 4, 6:
		o.Families = []int{version}
	default:
		return o, fmt.Errorf("family %d: must be 4 or 6", version)
	}
	var list []string
	if names != "" {
		list = strings.Split(names, ",")
	}
	o.Scenarios, err = pick(list)
	return o, err
}

// runBounded runs the lab within its time: maxTime, and more only if longer measurements were asked for.
func runBounded(ctx context.Context, o options) (result, error) {
	if err := check(o.Levee); err != nil {
		return result{}, err
	}
	measurements := 2 * len(o.Families) * (len(o.Scenarios) + 1)
	limit := maxTime + time.Duration(measurements)*max(0, o.Duration-defaultDuration)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it took longer than %s; is the machine busy?", limit))
	defer cancel()
	res, err := run(ctx, o)
	if err != nil && ctx.Err() != nil {
		return res, context.Cause(ctx)
	}
	return res, err
}

func exitCode(ctx context.Context, err error) int {
	switch {
	case errors.Is(err, errMissing):
		return exitMissing
	case errors.Is(err, errNotVeth), errors.Is(err, errHostNet):
		return exitRefused
	case ctx.Err() != nil:
		return exitInterrupted
	default:
		return exitFailed
	}
}
