package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/levee-xdp/levee/agent/listen"
	"github.com/levee-xdp/levee/agent/state"
)

// The bounds of what one peer can cost.
const (
	maxBody       = 8 << 20
	maxHeader     = 16 << 10
	maxStreams    = 32 // requests at once on one connection of HTTP/2
	headerTimeout = 5 * time.Second
	readTimeout   = 30 * time.Second
	writeTimeout  = 60 * time.Second
	idleTimeout   = 2 * time.Minute
	stopTimeout   = 3 * time.Second
	maxSample     = 10 * time.Second

	// On the Unix socket: in all, and of one user other than root.
	maxUnix     = 512
	maxUnixEach = 384
)

// What one address may do on TCP beside asking: open connections, and show bad credentials.
var (
	newConnections = Rate{PerSecond: 50, Burst: 200}
	badCredentials = Rate{PerSecond: 1, Burst: 20}
)

// Config says where the API is served, and what for.
type Config struct {
	Socket  string
	Group   string // who may connect beside root; ignored if there is no such group
	TCP     *TCP   // nil: the Unix socket alone
	Version string
	Backend Backend
	Audit   Audit                        // told of refusals; may be nil
	Known   func(state.Actor)            // told of who asks from another host for what it may, and may change something; may be nil
	Observe func(route string, code int) // told of every answer; may be nil
	Log     *slog.Logger
}

// Audit takes what was refused before the backend was asked.
type Audit interface {
	Refuse(e *state.AuditEvent)
}

// Server is the API as a task.
type Server struct {
	config Config
	peers  *peers
	ready  chan struct{}
	tcp    atomic.Pointer[listen.Listener] // when ready; nil if there is none
}

// New returns a server that does not listen yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(string, int) {}
	}
	return &Server{config: c, peers: &peers{group: c.Group}, ready: make(chan struct{})}
}

// String names the task.
func (s *Server) String() string { return "api" }

// Ready is closed when the API answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is where the API listens on TCP; nil if it does not. It is known when the server is ready.
func (s *Server) Addr() net.Addr {
	if l := s.tcp.Load(); l != nil {
		return l.Addr()
	}
	return nil
}

// Problem says that another process has the TCP listener's port; else it is empty.
func (s *Server) Problem() string {
	if l := s.tcp.Load(); l != nil {
		return l.Problem()
	}
	return ""
}

// Run listens and serves until the context ends; requests under way then get a moment to finish.
func (s *Server) Run(ctx context.Context) error {
	handler := Handler(s.config)
	unix, err := s.listenUnix(ctx)
	if err != nil {
		return fmt.Errorf("api socket: %w", err)
	}
	inside := &door{Server: s, bodies: insideBodies(), weights: insideWeights()}
	servers := []*http.Server{s.server(ctx, inside.serve(handler))}
	listeners := []net.Listener{newGate(unix, maxUnix, maxUnixEach, nil, credited)}
	if s.config.TCP != nil {
		outside, listener, err := s.listenTCP(ctx)
		if err != nil {
			return errors.Join(fmt.Errorf("api: %w", err), unix.Close())
		}
		server := s.server(ctx, outside.serve(handler))
		server.TLSConfig = outside.certs.listener()
		server.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: maxStreams, MaxReadFrameSize: 16 << 10,
			MaxReceiveBufferPerConnection: 1 << 20, MaxReceiveBufferPerStream: 256 << 10,
			MaxDecoderHeaderTableSize: 4096, MaxEncoderHeaderTableSize: 4096,
			SendPingTimeout: idleTimeout / 2, PingTimeout: headerTimeout, WriteByteTimeout: readTimeout}
		servers, listeners = append(servers, server), append(listeners, listener)
	}
	close(s.ready)
	group, ctx := errgroup.WithContext(ctx)
	for i, server := range servers {
		group.Go(func() error { return serve(ctx, server, listeners[i]) })
	}
	return group.Wait()
}

// credited finds out who a peer on the Unix socket is.
func credited(h *held) bool {
	c, ok := credOf(h.Conn)
	if h.cred = c; c.Uid != 0 && int(c.Uid) != os.Geteuid() {
		h.key = fmt.Sprint(c.Uid)
	}
	return ok
}

func (s *Server) listenTCP(ctx context.Context) (*door, net.Listener, error) {
	t := s.config.TCP
	certs, err := loadCertificates(t, s.config.Log)
	if err != nil {
		return nil, nil, err
	}
	listener, err := listen.TCP(ctx, t.Listen, s.config.Log)
	if err != nil {
		return nil, nil, fmt.Errorf("api.tcp.listen: %w", err)
	}
	s.tcp.Store(listener)
	if listener.Problem() == "" {
		s.config.Log.Info("the API listens on TCP", "address", listener.Addr().String())
	}
	d := &door{Server: s, tcp: t, certs: certs, addresses: newRates(t.PerAddressRequests), failures: newRates(badCredentials), actors: newRates(t.Requests),
		bodies: outsideBodies(), weights: outsideWeights()}
	gate := newGate(listener, t.Connections, t.PerAddress, newRates(newConnections), func(h *held) bool {
		h.key = addressKey(remoteOf(h.Conn).Addr())
		return true
	})
	return d, gate, nil
}

func (s *Server) server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler: s.observed(h),
		// OPTIONS * is asked by nobody who may.
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            headerTimeout,
		ReadTimeout:                  readTimeout,
		WriteTimeout:                 writeTimeout,
		IdleTimeout:                  idleTimeout,
		MaxHeaderBytes:               maxHeader,
		ErrorLog:                     slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		BaseContext:                  func(net.Listener) context.Context { return ctx },
	}
}

func serve(ctx context.Context, server *http.Server, l net.Listener) error {
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		err := server.Shutdown(grace)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close()
		}
		stopped <- err
	})
	var err error
	if server.TLSConfig != nil {
		err = server.ServeTLS(l, "", "")
	} else {
		err = server.Serve(l)
	}
	if stop() {
		return fmt.Errorf("api: %w", errors.Join(err, server.Close()))
	}
	return <-stopped
}

type actorKey struct{}

func withActor(ctx context.Context, actor state.Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, actor)
}

// actorOf says who asks. Where nobody has said, that is nobody, who may do nothing.
func actorOf(ctx context.Context) state.Actor {
	actor, _ := ctx.Value(actorKey{}).(state.Actor)
	return actor
}
