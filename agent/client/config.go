package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"
)

// Socket is where the daemon listens if nobody says otherwise.
const Socket = "/run/levee/levee.sock"

const (
	dialTimeout = 5 * time.Second
	idleConns   = 256     // that are kept for the next calls
	maxToken    = 4 << 10 // of a token's file, in bytes
)

// Config says whom to speak to, and as whom. Without a Socket and a URL it is the daemon of this
// host, and the kernel tells it which user asks.
type Config struct {
	Socket string // the daemon's Unix socket

	// URL is where a daemon listens on TCP, instead of Socket: https://host:port. It always is TLS,
	// and the daemon wants a token or a client's certificate.
	URL string
	// Token is sent as a bearer token. TokenFile is read at each call instead, so that a token can
	// be changed while the program runs.
	Token     string
	TokenFile string
	// CA is a file of PEM certificates that the daemon's must go back to, instead of the system's.
	CA string
	// Certificate and Key are PEM files of a client's certificate. They are read anew for each
	// connection, so that they can be renewed while the program runs.
	Certificate, Key string

	Timeout time.Duration // of a call in all, beside what it samples; 30 s if 0
	// Retries is how often a call is made again where that is safe: 2 if 0, never if negative. It is
	// safe where the daemon has not taken the call up, or where doing it twice does what doing it
	// once does; changes in batches carry an Idempotency-Key for that.
	Retries int
	Agent   string // the User-Agent
}

// onlyUnix checks what makes no sense with a Unix socket.
func (c *Config) onlyUnix() error {
	if c.Token != "" || c.TokenFile != "" || c.CA != "" || c.Certificate != "" || c.Key != "" {
		return errors.New("tokens and certificates go with a URL; on the Unix socket the kernel says who asks")
	}
	return nil
}

// tls checks what a URL needs, and makes the configuration of TLS.
func (c *Config) tls() (*tls.Config, error) {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return nil, fmt.Errorf("the daemon's URL: %w", err)
	case c.Socket != "":
		return nil, errors.New("both a socket and a URL: give one of them")
	case u.Scheme != "https":
		return nil, fmt.Errorf("the daemon's URL %q: is not https; a daemon listens on TCP with TLS alone", c.URL)
	case u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil || u.Fragment != "":
		return nil, fmt.Errorf("the daemon's URL %q: is not of the form https://host:port", c.URL)
	case c.Token != "" && c.TokenFile != "":
		return nil, errors.New("both a token and a file of one: give one of them")
	case (c.Certificate == "") != (c.Key == ""):
		return nil, errors.New("a certificate and its key go together: one of them is missing")
	}
	out := &tls.Config{MinVersion: tls.VersionTLS13}
	if c.CA != "" {
		text, err := os.ReadFile(c.CA)
		if err != nil {
			return nil, fmt.Errorf("the certificates to trust: %w", err)
		}
		out.RootCAs = x509.NewCertPool()
		if !out.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("the certificates to trust: there is none in PEM in %s", c.CA)
		}
	}
	if c.Certificate != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
			if err != nil {
				return nil, fmt.Errorf("the client's certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		out.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return out, nil
}

// token returns the bearer token; empty if there is none.
func (c *Config) token() (string, error) {
	if c.TokenFile == "" {
		return c.Token, nil
	}
	f, err := os.Open(c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("the token: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxToken))
	if text = bytes.TrimSpace(text); err != nil || len(text) == 0 || bytes.ContainsAny(text, " \t\r\n") {
		return "", errors.Join(fmt.Errorf("the token: there is not one alone in %s", c.TokenFile), err)
	}
	return string(text), nil
}

func (c *Client) dialUnix(ctx context.Context, _, _ string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return c.dialed(d.DialContext(ctx, "unix", c.config.Socket))
}

func (c *Client) dialTCP(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	return c.dialed(d.DialContext(ctx, network, address))
}

func (c *Client) dialed(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, &UnreachableError{At: c.at, Err: cause(err), unsent: true}
	}
	return conn, nil
}

// cause leaves away the "dial unix /path" that the error's text says again.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return op.Err
	}
	return err
}
