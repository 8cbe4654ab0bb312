//go:build man

package main

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
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
			header := &doc.GenManHeader{Section: "1", Source: "Levee", Manual: "Levee", Date: &date}
			return doc.GenManTree(root, header, args[0])
		},
	}}
}
