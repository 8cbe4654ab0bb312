package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
)

// activated returns the Unix socket that systemd hands over, or nil if it hands over none.
func activated(path string) (net.Listener, error) {
	listeners, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("take the sockets of systemd: %w", err)
	}
	var mine net.Listener
	for _, l := range listeners {
		u, ok := l.(*net.UnixListener)
		switch {
		case ok && mine == nil:
			u.SetUnlinkOnClose(false) // it is systemd's
			mine = u
		case l != nil:
			err = errors.Join(err, l.Close())
		}
	}
	if mine != nil && mine.Addr().String() != path {
		return mine, fmt.Errorf("systemd hands over the socket %s, and api.socket is %s: they must be the same", mine.Addr(), path)
	}
	return mine, err
}

// listenUnix makes the socket, in the place of one that a daemon left behind. It is made where nobody
// else can reach it and moved to its place when its mode is right, so at no time may more connect than
// are meant to.
func (s *Server) listenUnix(ctx context.Context) (net.Listener, error) {
	path := s.config.Socket
	if l, err := activated(path); l != nil || err != nil {
		return l, err
	}
	parent := filepath.Dir(path)
	if err := os.MkdirAll(parent, 0o755); err != nil { // the socket has its own mode
		return nil, err
	}
	d := net.Dialer{Timeout: time.Second}
	if conn, err := d.DialContext(ctx, "unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: somebody answers there; is another daemon running?", path), conn.Close())
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is there, and is not a socket", path)
	}
	dir, err := os.MkdirTemp(parent, ".levee-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	made := filepath.Join(dir, "s")
	listener, err := (&net.ListenConfig{}).Listen(ctx, "unix", made)
	if err != nil {
		return nil, err
	}
	listener.(*net.UnixListener).SetUnlinkOnClose(false) // it is not there any more
	if err := s.permit(made); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	if err := os.Rename(made, path); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	info, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return &placed{listener, path, info}, nil
}

// permit lets the group in, if there is one: connecting takes the right to write.
func (s *Server) permit(path string) error {
	gid, ok := s.peers.groupID()
	if !ok {
		return os.Chmod(path, 0o600)
	}
	if err := os.Chown(path, -1, int(gid)); err != nil {
		return fmt.Errorf("give the socket to the group %s: %w", s.config.Group, err)
	}
	return os.Chmod(path, 0o660)
}

// placed is a listener whose socket was moved; it takes it away at its end, if it is still its own.
type placed struct {
	net.Listener
	path string
	info fs.FileInfo
}

// Close stops listening, and takes the socket away.
func (p *placed) Close() error {
	if now, err := os.Lstat(p.path); err == nil && os.SameFile(now, p.info) {
		return errors.Join(os.Remove(p.path), p.Listener.Close())
	}
	return p.Listener.Close()
}
