package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/levee-xdp/levee/agent/listen"
	"github.com/levee-xdp/levee/agent/state"
)

// NewRegistry returns a registry of these collectors, and of those of Go's runtime and the process.
func NewRegistry(of ...prometheus.Collector) (*prometheus.Registry, error) {
	r := prometheus.NewPedanticRegistry()
	of = append(of, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range of {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return r, nil
}

// Bounds of what a client may take.
const (
	readTimeout    = 5 * time.Second
	writeTimeout   = 15 * time.Second
	idleTimeout    = time.Minute
	maxHeader      = 8 << 10
	maxConnections = 64
	maxScrapes     = 4
)

// Handler answers /metrics, /healthz and /readyz. Healthy is who answers at all; ready is who is
// well, as health says. Both errors and reasons are for people.
func Handler(g prometheus.Gatherer, health func() state.Health) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		ErrorHandling:       promhttp.ContinueOnError,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             writeTimeout - time.Second,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"state": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		h := health()
		if h.Problems == nil {
			h.Problems = []string{}
		}
		code := http.StatusOK
		if h.State != "ok" {
			code = http.StatusServiceUnavailable
		}
		answer(w, code, h)
	})
	return mux
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // who asked has gone
}

// Server serves a handler on a TCP address. It is a task: Run it once.
type Server struct {
	listener *listen.Listener
	server   http.Server
	log      *slog.Logger
	open     atomic.Int64
	ready    chan struct{}
}

// Listen takes an address such as 127.0.0.1:9464. Whether it may be one that other hosts reach was
// decided before. On a loopback address, requests for other hosts' names are refused, so that no web
// page can have a browser ask here. The address may be one that the host gets later, and its port another
// process's: see Problem. The log may be nil.
func Listen(ctx context.Context, address string, h http.Handler, log *slog.Logger) (*Server, error) {
	l, err := listen.TCP(ctx, address, log) // binding does not wait
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{listener: l, log: log, ready: make(chan struct{})}
	if a, ok := l.Addr().(*net.TCPAddr); ok && a.IP.IsLoopback() {
		h = localOnly(h)
	}
	s.server = http.Server{
		Handler:           h,
		ReadHeaderTimeout: readTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
		ConnState:         s.count,
	}
	return s, nil
}

// Addr returns the address that was taken.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Problem says that another process has the port; else it is empty.
func (s *Server) Problem() string { return s.listener.Problem() }

// String names the task.
func (s *Server) String() string { return "metrics" }

// Ready is closed when requests are answered.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Close gives the address back, of a Server that was never run.
func (s *Server) Close() error { return s.listener.Close() }

// Run answers requests until the context ends, then finishes those that are being answered.
func (s *Server) Run(ctx context.Context) error {
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		err := s.server.Shutdown(deadline)
		if errors.Is(err, context.DeadlineExceeded) {
			err = s.server.Close()
		}
		done <- err
	})
	close(s.ready)
	err := s.server.Serve(s.listener)
	if stop() {
		return fmt.Errorf("metrics: %w", errors.Join(err, s.server.Close()))
	}
	return <-done
}

// count closes connections over the bound. A connection that is closed here ends like others.
func (s *Server) count(c net.Conn, to http.ConnState) {
	switch to {
	case http.StateNew:
		if s.open.Add(1) > maxConnections {
			_ = c.Close() // its reader learns of it
		}
	case http.StateClosed, http.StateHijacked:
		s.open.Add(-1)
	default:
	}
}

// localOnly refuses what is asked of another host's name.
func localOnly(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if name, _, err := net.SplitHostPort(host); err == nil {
			host = name
		}
		if len(host) > 1 && host[0] == '[' {
			host = host[1 : len(host)-1]
		}
		if _, err := netip.ParseAddr(host); err != nil && host != "localhost" {
			http.Error(w, "misdirected request: ask by an address or localhost", http.StatusMisdirectedRequest)
			return
		}
		h.ServeHTTP(w, r)
	})
}
