//go:build man

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
)

// builders are the commands that only making the packages needs: their libraries do not come with the
// product.
func (a *app) builders() []*cobra.Command {
	return []*cobra.Command{{
		Use:    "man DIRECTORY",
		Short:  "Write the manual, a page a command",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			epoch, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
			if err != nil {
				return fmt.Errorf("SOURCE_DATE_EPOCH: %w", err)
			}
			date := time.Unix(epoch, 0).UTC()
			root := cmd.Root()
			root.DisableAutoGenTag = true
			root.CompletionOptions.HiddenDefaultCmd = true
			root.Long += firstPage(root)
			header := &doc.GenManHeader{Section: "1", Source: "Levee", Manual: "Levee", Date: &date}
			return doc.GenManTree(root, header, args[0])
		},
	}}
}

// firstPage is what the manual's first page has beyond the help: it is what `man levee` shows, and what the
// units name as their documentation.
func firstPage(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("\n\n# COMMANDS\nEach has a page of its own: **man levee-ban**, **man levee-limit-set**.\n")
	item := func(name, words string) { fmt.Fprintf(&b, "\n**%s**\n: %s\n", name, words) }
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && c.Name() != "help" {
			item("levee "+c.Name(), c.Short)
		}
	}
	b.WriteString("\n# FILES\n")
	for _, f := range [][2]string{
		{config.Path, "The configuration. It may be missing; every setting is explained in it."},
		{"/var/lib/levee/state.db", "What was decided: bans, limits, allow entries, interfaces, tokens."},
		{"/var/lib/levee/audit.jsonl", "The audit log."},
		{client.Socket, "The API, for root and the group levee."},
		{"/sys/fs/bpf/levee", "The program and its tables, pinned in the kernel. Removing it takes the shield down."},
		{"/usr/share/levee", "The reference configuration, the Grafana dashboard, the alert rules for Prometheus."},
		{"/usr/share/doc/levee/docs", "The pages: quickstart.md, operations.md, lock-out.md, runbook/ and others."},
	} {
		item(f[0], f[1])
	}
	b.WriteString("\n# NOTES\nStopping the daemon leaves the shield up; **levee detach --all** takes it down. If you are locked out: " +
		"**levee panic on** lets everything pass, also when no daemon runs.\n")
	return b.String()
}
