// Command guarded is an API server that is held to limits by httpguard, and hands those who try
// passwords down to the kernel of the host that it runs on.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/httpguard"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "where to serve")
	socket := flag.String("socket", "", "the daemon's Unix socket")
	proxies := flag.String("proxies", "", "the trusted proxies in front of this server: prefixes, with commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *listen, *socket, *proxies, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guarded:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, listen, socket, proxies string, out io.Writer) (err error) {
	daemon := client.New(client.Config{Socket: socket, Agent: "guarded"})
	defer daemon.Close()
	config := httpguard.Config{
		Limits: []httpguard.Limit{
			{Name: "address", Requests: 600, Per: time.Minute, Burst: 60},
			// A token is whatever its caller says it is until it was looked at, so it gets the smaller
			// share; what is kept of it is a hash.
			{Name: "token", Requests: 300, Per: time.Minute, Key: func(r *http.Request) string { return r.Header.Get("Authorization") }},
		},
		Cost: httpguard.Costs(map[string]int{"GET /search": 10, "POST /login": 2, "GET /health": 0}),

		Failed: func(r *http.Request, status int) bool {
			return r.URL.Path == "/login" && status == http.StatusUnauthorized
		},
		Failures:   httpguard.Threshold{Count: 5, Per: time.Minute},
		Rejections: httpguard.Threshold{Count: 200, Per: time.Minute},
		Ban:        httpguard.Ban{First: 10 * time.Minute, Factor: 4, Longest: 24 * time.Hour},
		Escalation: httpguard.Escalation{Daemon: daemon, Origin: "api:guarded"},

		Log: slog.Default(),
	}
	for p := range strings.SplitSeq(proxies, ",") {
		if p == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(p)
		if err != nil {
			return err
		}
		config.Header, config.TrustedProxies = httpguard.XForwardedFor, append(config.TrustedProxies, prefix)
	}
	guard, err := httpguard.New(config) //nolint:contextcheck // what it does ends with Close, not with a context
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, guard.Close()) }()

	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: guard.Handler(routes(guard)), ReadHeaderTimeout: 5 * time.Second}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	fmt.Fprintf(out, "serving at %s\n", listener.Addr())
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// routes is the server as it would be without httpguard.
func routes(guard *httpguard.Guard) http.Handler {
	mux := http.NewServeMux()
	password := sha256.Sum256([]byte("correct horse battery staple"))
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		given := sha256.Sum256([]byte(r.FormValue("password")))
		if subtle.ConstantTimeCompare(given[:], password[:]) != 1 {
			http.Error(w, "no", http.StatusUnauthorized)
			return
		}
		fmt.Fprintln(w, "welcome")
	})
	mux.HandleFunc("GET /search", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "[]") })
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		// For Prometheus, read the same numbers in a Collector, or count in Config.Observe.
		_ = json.NewEncoder(w).Encode(guard.Stats()) // a client that has gone needs no answer
	})
	return mux
}
