package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/agent/client"
	lists "github.com/levee-xdp/levee/agent/list"
	"github.com/levee-xdp/levee/agent/state"
)

type importFlags struct {
	format, origin, reason, lasts string
	monitor, force, whole         bool
}

func (a *app) importCommand() *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import FILE | -",
		Short: "Ban what a list names: plain, CSV, JSON, ipset save, nft",
		Long: `Ban what a list names, from a file or with - from stdin, gzip or not. The format is found out by how
the list begins: plain (one address, prefix or range a line), csv, json (also lines of it, cscli's and
levee's own), ipset (ipset save), nft (nft list set), nft-json (nft -j list set).

Entries keep the times that they have left, their comments as reasons, and the origins that levee bans
export wrote. Bad lines and entries that are refused are told with their lines; the others are taken,
and the exit code is 5. With --whole nothing is, unless all are good.`,
		Example: `  levee bans import drop.txt --origin feed:spamhaus --for 1d
  ipset save | levee bans import -
  nft list set inet filter blocked | levee bans import - --whole`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.importList(cmd.Context(), f, args[0], cmd.Flags().Changed("origin"))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", string(lists.Auto), "what the list is: "+formatNames(lists.Formats))
	flags.StringVar(&f.origin, "origin", string(state.OriginOperator), "who speaks; without it, whom the list names")
	flags.StringVar(&f.reason, "reason", "", "why, where the list does not say")
	flags.StringVar(&f.lasts, "for", "", "how long, where the list does not say (default: until it is taken back)")
	flags.BoolVar(&f.monitor, "monitor", false, "count what would be dropped, and pass it")
	flags.BoolVar(&f.force, "force", false, "also prefixes wider than /8 or /19, or with protected addresses within them")
	flags.BoolVar(&f.whole, "whole", false, "all or nothing: change nothing if a line is bad or an entry is refused")
	must(cmd.RegisterFlagCompletionFunc("origin", a.completeOrigins))
	must(cmd.RegisterFlagCompletionFunc("format", fixed(strings.Split(formatNames(lists.Formats), ", ")...)))
	return cmd
}

func formatNames(formats []lists.Format) string {
	names := make([]string, len(formats))
	for i, f := range formats {
		names[i] = string(f)
	}
	return strings.Join(names, ", ")
}

// imported is what a list had, beside what the daemon says of it.
type imported struct {
	name   string
	format lists.Format
	lines  []uint32          // of the entries that were sent
	bad    []state.BulkError // the first of them
	bads   int
	ended  int
}

func (a *app) importList(ctx context.Context, f importFlags, name string, originGiven bool) error {
	if !slices.Contains(lists.Formats, lists.Format(f.format)) {
		return usage("--format %q: is none of %s", f.format, formatNames(lists.Formats))
	}
	origin, err := state.ParseOrigin(f.origin)
	if err != nil {
		return inFlag("origin", err)
	}
	if f.lasts != "" {
		d, err := state.ParseDuration(f.lasts)
		if err != nil {
			return inFlag("for", err)
		}
		if d == 0 {
			return usage("--for %q: is no time; leave it out for bans without end", f.lasts)
		}
	}
	in, size, err := a.source(name)
	if err != nil {
		return err
	}
	defer in.Close()
	at, end := a.progress(size)
	got := &imported{name: name, format: lists.Format(f.format)}
	if name == "-" {
		got.name = "stdin"
	}
	c := a.client()
	defer c.Close()
	read, write := io.Pipe()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		to := bufio.NewWriterSize(write, 64<<10)
		err := a.send(got, f, origin, originGiven, &counted{in, 0, at}, to)
		return write.CloseWithError(cmp.Or(err, to.Flush()))
	})
	var answer state.BulkResponse
	group.Go(func() (err error) {
		answer, err = c.BanBulk(ctx, state.BulkRequest{Origin: origin, Reason: f.reason, For: f.lasts, Monitor: f.monitor, Force: f.force, Whole: f.whole}, client.JSONLines, read)
		return errors.Join(err, read.CloseWithError(cmp.Or(err, io.ErrClosedPipe)))
	})
	err = group.Wait()
	end()
	return a.importAnswer(got, f.whole, answer, err)
}

// source opens a list, and says how long it is if that is known.
func (a *app) source(name string) (io.ReadCloser, int64, error) {
	if name == "-" {
		if a.stdinTTY {
			a.note("Reading the list from the terminal; Ctrl-D ends it.")
		}
		return io.NopCloser(a.stdin), 0, nil
	}
	file, err := os.Open(name)
	if err != nil {
		return nil, 0, &usageError{err}
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", name)
	}
	if err != nil {
		return nil, 0, &usageError{errors.Join(err, file.Close())}
	}
	return file, info.Size(), nil
}

// counted tells how much was read.
type counted struct {
	io.Reader
	n  int64
	at func(int64)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	c.at(c.n)
	return n, err
}

// errBad says that a list has bad lines, and is not sent to its end.
var errBad = errors.New("the list has bad lines")

// send reads a list and writes its entries, a line each.
func (a *app) send(got *imported, f importFlags, origin state.Origin, originGiven bool, in io.Reader, to io.Writer) error {
	var failed error
	var line bytes.Buffer
	format, err := lists.Read(in, got.format, func(e lists.Entry) bool {
		if e.Err != nil {
			if got.bads++; len(got.bad) < maxLines {
				got.bad = append(got.bad, state.BulkError{Line: e.Line, Error: e.Err})
			}
			return true
		}
		if f.whole && got.bads > 0 {
			return true // the rest of the bad lines is told, too
		}
		if !e.Item.Expires.IsZero() && !e.Item.Expires.After(a.now()) {
			got.ended++
			return true
		}
		if originGiven {
			e.Item.Origin = origin
		}
		got.lines = append(got.lines, uint32(e.Line))
		if failed = writeItem(&line, &e.Item); failed == nil {
			_, failed = to.Write(line.Bytes())
		}
		return failed == nil
	})
	got.format = format
	switch {
	case failed != nil:
		return failed
	case err != nil:
		return &usageError{fmt.Errorf("%s: %w", got.name, err)}
	case f.whole && got.bads > 0:
		return errBad
	}
	return nil
}

// progress shows on a terminal how far it is: it takes what was read in all, and ends.
func (a *app) progress(size int64) (at func(int64), end func()) {
	if !a.stderrTTY || a.quiet || a.machine() {
		return func(int64) {}, func() {}
	}
	p := mpb.New(mpb.WithOutput(a.stderr), mpb.WithWidth(60), mpb.WithAutoRefresh(), mpb.WithRefreshRate(120*time.Millisecond))
	bar := p.AddBar(size, mpb.PrependDecorators(decor.Name("importing "), decor.Any(func(s decor.Statistics) string { return bytesOf(uint64(s.Current)) })),
		mpb.AppendDecorators(decor.Any(func(s decor.Statistics) string {
			if size == 0 {
				return ""
			}
			return share(uint64(s.Current), uint64(size))
		})))
	return func(n int64) {
			if size > 0 {
				n = min(n, size-1) // at the end what the daemon does is still to come
			}
			bar.SetCurrent(n)
		}, func() {
			bar.Abort(true)
			p.Wait()
		}
}

// importAnswer tells what came of a list.
func (a *app) importAnswer(got *imported, whole bool, answer state.BulkResponse, err error) error {
	if told := errors.Is(err, errBad) || whole && got.bads > 0; err != nil && !told {
		var ours *usageError
		if errors.As(err, &ours) {
			return ours
		}
		return err
	}
	told := slices.Clone(got.bad)
	for _, e := range answer.Errors {
		if e.Line > 0 && e.Line <= len(got.lines) {
			e.Line = int(got.lines[e.Line-1])
		}
		told = append(told, e)
	}
	slices.SortStableFunc(told, func(x, y state.BulkError) int { return cmp.Compare(x.Line, y.Line) })
	done, bad := answer.Added+answer.Changed+answer.Unchanged, answer.Refused+got.bads
	failed := a.tellLines(got.name, got.format, told, bad)
	if a.machine() {
		err := a.printJSON(struct {
			state.BulkResponse
			Format lists.Format `json:"format"`
			Bad    int          `json:"bad"`
			Ended  int          `json:"ended"`
		}{answer, got.format, got.bads, got.ended})
		if err != nil {
			return err
		}
	}
	a.importSummary(got, answer, done)
	return ofBatch(done, failed)
}

// tellLines tells what is wrong with lines of a list, of which there are so many, and returns it.
func (a *app) tellLines(name string, format lists.Format, told []state.BulkError, bad int) []*state.Error {
	failed := make([]*state.Error, 0, len(told))
	place := "line"
	if format == lists.JSON || format == lists.NFTJSON {
		place = "item"
	}
	for i, e := range told {
		failed = append(failed, e.Error)
		if i < maxLines {
			prefix := e.Prefix
			if prefix != "" {
				prefix += " "
			}
			a.complain("%s, %s %d: %s%s", name, place, e.Line, prefix, refusal(e.Error))
		}
	}
	if bad > maxLines {
		a.complain("and %s more", count(bad-maxLines))
	}
	return failed
}

func (a *app) importSummary(got *imported, r state.BulkResponse, done int) {
	var parts []string
	for _, p := range []struct {
		n    int
		word string
	}{{r.Added, "added"}, {r.Changed, "changed"}, {r.Unchanged, "unchanged"}, {r.Refused - r.Protected, "refused"},
		{r.Protected, "left out, as they touch protected addresses"}, {got.bads, "bad"}, {got.ended, "ended already"}} {
		if p.n > 0 {
			parts = append(parts, count(p.n)+" "+p.word)
		}
	}
	if len(parts) == 0 {
		parts = []string{"nothing in it"}
	}
	nothing := ""
	if done == 0 && r.Refused+got.bads > 0 {
		nothing = "; nothing was changed"
	}
	a.say("%s (%s): %s%s", got.name, got.format, strings.Join(parts, ", "), nothing)
}
