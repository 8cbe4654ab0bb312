package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// TCP says how the API is served to other hosts.
type TCP struct {
	Listen           string
	Certificate, Key string // PEM files
	ClientCA         string // a PEM file of whom client certificates go back to; empty: none are taken
	Clients          []Client
	Hosts            []string // by which names the API may be called, beside those of its certificate

	Connections, PerAddress int
	Requests                Rate // of one token or certificate
	PerAddressRequests      Rate
}

// Client is whoever shows a certificate of a name.
type Client struct {
	Name   string // a DNS name, URI or mail address of the certificate, or where it has none its common name
	Owner  string
	Scopes []state.Scope
	Bounds *state.Bounds
}

// certificates are the server's certificate and those of who its clients go back to. They are read
// anew when their files change.
type certificates struct {
	config *TCP
	log    *slog.Logger

	mu      sync.Mutex
	checked time.Time
	stamps  [3]stamp
	current *tls.Config
}

// stamp tells a file's versions apart.
type stamp struct {
	modified time.Time
	size     int64
}

// checkEvery is how often the files are looked at.
const checkEvery = time.Second

func loadCertificates(c *TCP, log *slog.Logger) (*certificates, error) {
	k := &certificates{config: c, log: log}
	k.stamps = k.look()
	current, err := k.load()
	if err != nil {
		return nil, err
	}
	k.current, k.checked = current, time.Now()
	return k, nil
}

func (k *certificates) look() (out [3]stamp) {
	for i, path := range []string{k.config.Certificate, k.config.Key, k.config.ClientCA} {
		if info, err := os.Stat(path); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

func (k *certificates) load() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(k.config.Certificate, k.config.Key)
	if err != nil {
		return nil, fmt.Errorf("api.tcp.certificate: %w", err)
	}
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{pair},
		NextProtos:             []string{"h2", "http/1.1"},
		SessionTicketsDisabled: true, // who comes again is looked at again
	}
	if k.config.ClientCA == "" {
		return c, nil
	}
	text, err := os.ReadFile(k.config.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("api.tcp.client_ca: %w", err)
	}
	c.ClientCAs = x509.NewCertPool()
	if !c.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("api.tcp.client_ca: there is no certificate in PEM in %s", k.config.ClientCA)
	}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	return c, nil
}

// get returns the configuration as the files have it now. Where they make no sense, what they said
// before stands.
func (k *certificates) get() *tls.Config {
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.checked) < checkEvery {
		return k.current
	}
	k.checked = time.Now()
	now := k.look()
	if now == k.stamps {
		return k.current
	}
	k.stamps = now
	next, err := k.load()
	if err != nil {
		k.log.Error("the API's certificates have changed and can't be read; those before stand", "error", err)
		return k.current
	}
	k.log.Info("the API's certificates were read again")
	k.current = next
	return next
}

// config is for the listener.
func (k *certificates) listener() *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return k.get(), nil },
	}
}

// named tells whether the server's certificate is for a host.
func (k *certificates) named(host string) bool {
	leaf := k.get().Certificates[0].Leaf
	return leaf != nil && leaf.VerifyHostname(host) == nil
}

var errNoClient = errors.New("the certificate's name is none that api.tcp.clients has")

// verify tells whether a client's certificate goes back to those whom the files name now. The handshake knew
// those that they named then, and a connection may be old. Who was verified is remembered with the connection.
func (k *certificates) verify(h *held, s *tls.ConnectionState) error {
	leaf, current := s.PeerCertificates[0], k.get()
	if time.Now().After(leaf.NotAfter) {
		return errors.New("the certificate has expired")
	}
	if h != nil && h.verified.Load() == current {
		return nil
	}
	if current.ClientCAs == nil {
		return errors.New("client certificates are no longer taken")
	}
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: current.ClientCAs, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		return fmt.Errorf("the certificate is no longer one of api.tcp.client_ca: %w", err)
	}
	if h != nil {
		h.verified.Store(current)
	}
	return nil
}

// client says who shows a certificate that has been verified.
func (t *TCP) client(s *tls.ConnectionState) (state.Actor, error) {
	leaf := s.VerifiedChains[0][0]
	names := slices.Concat(leaf.DNSNames, leaf.EmailAddresses)
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	if len(names) == 0 && leaf.Subject.CommonName != "" {
		names = []string{leaf.Subject.CommonName}
	}
	for _, c := range t.Clients {
		if slices.Contains(names, c.Name) {
			return state.Actor{Kind: state.ActorCertificate, Name: c.Owner, ID: c.Name, Scopes: c.Scopes, Bounds: c.Bounds}, nil
		}
	}
	return state.Actor{}, errNoClient
}
