package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
)

func (a *app) auditCommand() *cobra.Command {
	var where auditFile
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "Who changed what, and who was refused",
		Long: `Show and verify the audit log: who changed what, from where, and who was refused. It is read from its
files on this host, without the daemon, and takes the right to read them.`,
		Args: cobra.NoArgs,
		RunE: needsCommand,
	}
	cmd.PersistentFlags().StringVarP(&where.config, "config", "c", "", "the configuration that says where the log is (default "+config.Path+", where there is one)")
	cmd.PersistentFlags().StringVar(&where.path, "file", "", "the log (default: as the configuration says)")
	cmd.AddCommand(a.auditShowCommand(&where), a.auditVerifyCommand(&where))
	return cmd
}

// auditFile is what flags say of where the log is.
type auditFile struct{ config, path string }

func (f *auditFile) find(getenv func(string) string) (string, error) {
	if f.path != "" {
		return f.path, nil
	}
	c, err := config.Load(cmp.Or(f.config, getenv("LEVEE_CONFIG")))
	if err != nil {
		return "", err
	}
	return c.AuditPath(), nil
}

// auditError says what to do where a log can't be read.
func auditError(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &codeError{exitNotFound, fmt.Errorf("there is no audit log at %s", path)}
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the audit log %s can't be read: be root", path)
	}
	return fmt.Errorf("the audit log: %w", err)
}

type auditFlags struct {
	since, action, user string
	refused             bool
	limit               int
}

func (a *app) auditShowCommand(where *auditFile) *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the records, the newest last; -o jsonl prints them as they are",
		Example: `  levee audit show --since 1h
  levee audit show --refused --limit 20
  levee audit show --user gateway -o jsonl`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return a.auditShow(where, f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.since, "since", "", "only what was since then: 1h (ago), or 2026-01-02T15:04:05Z")
	flags.StringVar(&f.action, "action", "", "only this: ban, unban, set-limit, authenticate, …")
	flags.StringVar(&f.user, "user", "", "only what this user, token or certificate's owner asked for")
	flags.BoolVar(&f.refused, "refused", false, "only what was refused or failed")
	flags.IntVar(&f.limit, "limit", 100, "how many at most, the newest; 0: all")
	return cmd
}

func (a *app) auditShow(where *auditFile, f auditFlags) error {
	path, err := where.find(a.getenv)
	if err != nil {
		return err
	}
	since, err := a.since(f.since)
	if err != nil {
		return err
	}
	var found []audit.Entry
	for e, err := range audit.Read(path) {
		if err != nil {
			return auditError(path, err)
		}
		if e.Time.Before(since) || f.action != "" && e.Event.Action != f.action || f.refused && !e.Refused() ||
			f.user != "" && (e.User == nil || e.User.Name != f.user) {
			continue
		}
		if found = append(found, e); f.limit > 0 && len(found) > 2*f.limit {
			found = append(found[:0], found[len(found)-f.limit:]...)
		}
	}
	if f.limit > 0 && len(found) > f.limit {
		found = found[len(found)-f.limit:]
	}
	switch a.output {
	case "jsonl":
		for _, e := range found {
			if _, err := a.stdout.Write(append(cleanJSON(e.Line), '\n')); err != nil {
				return err
			}
		}
		return nil
	case "json":
		records := make([]audit.Record, len(found))
		for i, e := range found {
			records[i] = e.Record
		}
		return a.printJSON(records)
	}
	if len(found) == 0 {
		a.line("Nothing of that kind is recorded in %s.", path)
		return nil
	}
	g := a.grid("record", "time", "what", "from", "why").numbers(0).flexible(4, true)
	for _, e := range found {
		from, why := "", e.Event.Reason
		if e.Source != nil {
			from = e.Source.IP
		}
		if why == "" && len(e.Levee.Bans) > 0 {
			if why = e.Levee.Bans[0].Reason; e.Levee.Bans[0].Error != "" {
				why = e.Levee.Bans[0].Error
			}
		}
		what := e.Message
		if e.Levee.Suppressed > 0 {
			what += fmt.Sprintf(" (and %s more like it)", count(e.Levee.Suppressed))
		}
		row := []string{fmt.Sprint(e.Event.Sequence), a.clock(e.Time), what, from, why}
		if e.Event.Outcome == "failure" {
			g.painted(yellow, row...)
		} else {
			g.row(row...)
		}
	}
	g.hide().render()
	return nil
}

// since reads a time, or how long ago it was.
func (a *app) since(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := state.ParseDuration(s)
	if err != nil {
		return time.Time{}, usage("since %q is neither a time as 2026-01-02T15:04:05Z nor how long ago as 1h", s)
	}
	return a.now().Add(-time.Duration(d)), nil
}

func (a *app) auditVerifyCommand(where *auditFile) *cobra.Command {
	var hash string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Tell whether the log is what was written, and where not",
		Long: `Verify the audit log: each record carries the hash of the one before, and a file beside the log says how
far it went. What was changed, put in another order or taken out is named with its file and line. Exits with 1
if something is wrong.

Who can write the log and the file beside it can make both anew. Against that keep the hash that this prints on
another host, and give it to --hash later; or have the daemon send copies elsewhere (audit.copy).`,
		Example: `  levee audit verify`,
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			path, err := where.find(a.getenv)
			if err != nil {
				return err
			}
			return a.auditVerify(path, hash)
		},
	}
	cmd.Flags().StringVar(&hash, "hash", "", "a hash that was printed before: it must be in the log still")
	return cmd
}

func (a *app) auditVerify(path, hash string) error {
	r, err := audit.Verify(path)
	if err != nil {
		return auditError(path, err)
	}
	if hash != "" {
		found, err := audit.Contains(path, hash)
		if err != nil {
			return auditError(path, err)
		}
		if !found {
			r.Problems = append(r.Problems, audit.Problem{File: path, Detail: "no record has the hash " + clean(hash) + ": the log was made anew, or the record was dropped by age"})
		}
	}
	if a.machine() {
		if err := a.printJSON(r); err != nil {
			return err
		}
	} else {
		for _, p := range r.Problems {
			a.complain("%s", p)
		}
		if r.More > 0 {
			a.complain("and %d more", r.More)
		}
		if len(r.Problems) == 0 {
			a.say("the audit log is what was written: %s in %s, %d to %d", plural(r.Records, "record", "records"), plural(r.Files, "file", "files"), r.First, r.Last)
			a.say("hash %s", r.Hash)
		}
	}
	if len(r.Problems) > 0 {
		return &codeError{code: exitFailed}
	}
	return nil
}
