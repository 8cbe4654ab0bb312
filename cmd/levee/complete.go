package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// completionTime bounds how long a shell waits for names.
const completionTime = time.Second

type completion = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// fixed completes from a list.
func fixed(words ...string) completion {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// ask completes from what the daemon knows; nothing where it does not answer.
func (a *app) ask(names func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completionTime)
	defer cancel()
	c := a.client()
	defer c.Close()
	found, err := names(ctx, c)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for i := range found {
		found[i] = clean(found[i])
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeOrigins(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	names := []string{string(state.OriginOperator), string(state.OriginAPI), string(state.OriginCrowdSec),
		string(state.OriginFail2ban), string(state.OriginFleet), "feed:", string(state.OriginDetector)}
	more, directive := a.ask(func(ctx context.Context, c *client.Client) (found []string, err error) {
		status, err := c.Status(ctx, 0)
		for _, o := range status.Origins {
			if o.Origin != o.Origin.Kind() {
				found = append(found, string(o.Origin))
			}
		}
		return found, err
	})
	return append(names, more...), directive
}

func (a *app) completeLimits(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.ask(func(ctx context.Context, c *client.Client) (found []string, err error) {
		limits, err := c.Limits(ctx)
		for _, l := range limits.Limits {
			found = append(found, l.Name)
		}
		return found, err
	})
}

// completeInterfaces completes the names of the host's interfaces.
func (a *app) completeInterfaces(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return hostInterfaces(), cobra.ShellCompDirectiveNoFileComp
}

// completeShielded completes the names of interfaces that Levee knows.
func (a *app) completeShielded(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return a.ask(func(ctx context.Context, c *client.Client) (found []string, err error) {
		interfaces, err := c.Interfaces(ctx)
		for _, i := range interfaces.Interfaces {
			found = append(found, i.Name)
		}
		return found, err
	})
}
