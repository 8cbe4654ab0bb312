// Command push bans the addresses that it reads, one a line, and then shows some events. It shows how a
// program speaks to a Levee daemon.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

func main() {
	var c client.Config
	flag.StringVar(&c.Socket, "socket", "", "the daemon's Unix socket")
	flag.StringVar(&c.URL, "url", "", "or a daemon on another host: https://host:port")
	flag.StringVar(&c.TokenFile, "token-file", "", "with -url: the file that has the token")
	flag.StringVar(&c.CA, "ca", "", "with -url: the PEM file of whom to trust")
	length := flag.String("for", "1h", "how long the bans last")
	watch := flag.Int("watch", 0, "how many events to show afterwards")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, c, os.Stdin, os.Stdout, *length, *watch); err != nil {
		fmt.Fprintln(os.Stderr, "push:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, config client.Config, in io.Reader, out io.Writer, length string, watch int) error {
	config.Agent = "push"
	c := client.New(config)
	defer c.Close()

	var items []state.BanItem
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if address := strings.TrimSpace(lines.Text()); address != "" {
			items = append(items, state.BanItem{Prefix: address, For: length, Reason: "pushed"})
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if len(items) > 0 {
		answer, err := c.Ban(ctx, state.BanRequest{Bans: items})
		if refused, ok := errors.AsType[*client.Error](err); ok {
			return fmt.Errorf("the daemon refused it all (%d): %w", refused.Status, err)
		}
		if err != nil {
			return err // errors.Is(err, client.ErrUnreachable): nobody answered
		}
		for _, b := range answer.Bans {
			if b.Error != nil {
				fmt.Fprintf(out, "%s: refused: %s\n", b.Prefix, b.Error.Detail)
				continue
			}
			fmt.Fprintf(out, "%s: %s\n", b.Prefix, b.Status)
		}
	}
	claims := 0
	for _, err := range c.Claims(ctx, state.Filter{Limit: 1000}) {
		if err != nil {
			return err
		}
		claims++
	}
	fmt.Fprintf(out, "%d claims live\n", claims)
	if watch == 0 {
		return nil
	}
	for e, err := range c.Events(ctx, state.EventFilter{}) {
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s %s\n", e.Time.Format("15:04:05"), describe(&e))
		if watch--; watch == 0 {
			return nil
		}
	}
	return nil
}

func describe(e *state.Event) string {
	switch {
	case e.Decision != nil:
		return fmt.Sprintf("%s %s %s", e.Decision.About, e.Decision.Op, e.Decision.Subject)
	case e.Drop != nil:
		return fmt.Sprintf("a packet of %s was dropped: %s", e.Drop.Source, e.Drop.Reason)
	case e.Lost != nil:
		return "some events were missed: " + e.Lost.Why
	}
	return string(e.Kind)
}
