package client_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
)

// A batch on the daemon of this host: each item has its own answer.
func ExampleClient_Ban() {
	c := client.New(client.Config{})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := c.Ban(ctx, state.BanRequest{Bans: []state.BanItem{
		{Prefix: "203.0.113.7", For: "4h", Reason: "credential stuffing"},
		{Prefix: "2001:db8:bad::/64", For: "1d", Origin: "api:gateway-3"},
	}})
	if errors.Is(err, client.ErrUnreachable) {
		slog.Warn("nobody bans now", "error", err)
		return
	}
	for _, b := range answer.Bans {
		fmt.Println(b.Prefix, b.Status, b.Error)
	}
}

// A daemon on another host, with a token that is read anew from its file at each call.
func ExampleNew() {
	c := client.New(client.Config{URL: "https://edge-1.example.net:9465", TokenFile: "/etc/shop/levee.token", CA: "/etc/shop/levee-ca.pem"})
	defer c.Close()
	for claim, err := range c.Claims(context.Background(), state.Filter{Origin: "api:gateway-3"}) {
		if err != nil {
			slog.Error("the list broke off", "error", err)
			return
		}
		fmt.Println(claim.Prefix, claim.Expires)
	}
}

// Events go on over a restart of the daemon, until the context ends.
func ExampleClient_Events() {
	c := client.New(client.Config{})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for e, err := range c.Events(ctx, state.EventFilter{Kinds: []state.EventKind{state.EventDecision}}) {
		if err != nil {
			slog.Error("no more events", "error", err)
			return
		}
		fmt.Println(e.ID, e.Kind)
	}
}
