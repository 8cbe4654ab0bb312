package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/state"
)

// The bounds of what one peer can cost.
const (
	maxBody        = 8 << 20
	maxHeader      = 16 << 10
	maxConnections = 512
	headerTimeout  = 5 * time.Second
	readTimeout    = 30 * time.Second
	writeTimeout   = 60 * time.Second
	idleTimeout    = 2 * time.Minute
	stopTimeout    = 3 * time.Second
	maxSample      = 10 * time.Second
)

// Config says where the API is served, and what for.
type Config struct {
	Socket  string
	Group   string // who may connect beside root; ignored if there is no such group
	Version string
	Backend Backend
	Observe func(route string, code int) // told of every answer; may be nil
	Log     *slog.Logger
}

// Server is the API as a task.
type Server struct {
	config Config
	ready  chan struct{}
}

// New returns a server that does not listen yet.
func New(c Config) *Server {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(string, int) {}
	}
	return &Server{config: c, ready: make(chan struct{})}
}

// String names the task.
func (s *Server) String() string { return "api" }

// Ready is closed when the socket answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run listens and serves until the context ends; requests under way then get a moment to finish.
func (s *Server) Run(ctx context.Context) error {
	listener, err := s.listen()
	if err != nil {
		return fmt.Errorf("api socket: %w", err)
	}
	server := &http.Server{
		Handler:           s.observed(Handler(s.config)),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return withActor(ctx, peerOf(c))
		},
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
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
	close(s.ready)
	err = server.Serve(&limitListener{Listener: listener, slots: make(chan struct{}, maxConnections)})
	if stop() {
		return fmt.Errorf("api: %w", errors.Join(err, server.Close()))
	}
	return <-stopped
}

// listen makes the socket, in the place of one that a daemon left behind.
func (s *Server) listen() (net.Listener, error) {
	path := s.config.Socket
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the socket has its own mode
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: somebody answers there; is another daemon running?", path), conn.Close())
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is there, and is not a socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := s.permit(path); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// permit lets the group in, if there is one. Until then only the daemon's user could connect, as
// connecting takes the right to write.
func (s *Server) permit(path string) error {
	if g, err := user.LookupGroup(s.config.Group); err == nil && s.config.Group != "" {
		gid, err := strconv.Atoi(g.Gid)
		if err != nil {
			return err
		}
		if err := os.Chown(path, -1, gid); err != nil {
			return fmt.Errorf("give the socket to the group %s: %w", s.config.Group, err)
		}
		return os.Chmod(path, 0o660)
	}
	return os.Chmod(path, 0o600)
}

// limitListener accepts a connection only when there is a slot for it.
type limitListener struct {
	net.Listener
	slots chan struct{}
}

func (l *limitListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.slots <- struct{}{}
	return &limitedConn{Conn: c, free: sync.OnceFunc(func() { <-l.slots })}, nil
}

type limitedConn struct {
	net.Conn
	free func()
}

func (c *limitedConn) Close() error {
	defer c.free()
	return c.Conn.Close()
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

// peerOf names the user on the other end of a socket, as the kernel knows it.
func peerOf(c net.Conn) (actor state.Actor) {
	if l, ok := c.(*limitedConn); ok {
		c = l.Conn
	}
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return actor
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return actor
	}
	_ = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		actor = state.Actor{Kind: state.ActorPeer, ID: strconv.Itoa(int(cred.Uid)), UID: cred.Uid, GID: cred.Gid, PID: cred.Pid,
			Scopes: []state.Scope{state.ScopeAdmin}}
		if u, err := user.LookupId(actor.ID); err == nil {
			actor.Name = u.Username
		}
	})
	return actor
}

// observed reports the route and the code of every answer.
func (s *Server) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			route := r.Pattern
			if route == "" {
				route = "other"
			}
			s.config.Observe(route, rec.code)
		}()
		next.ServeHTTP(rec, r)
	})
}

type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
