package notify

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// The headers of a notification.
const (
	HeaderEvent     = "X-Levee-Event"
	HeaderDelivery  = "X-Levee-Delivery"  // the same for every attempt at one notification
	HeaderTimestamp = "X-Levee-Timestamp" // when this attempt was signed, in seconds since 1970
	HeaderSignature = "X-Levee-Signature" // see Sign
)

// Sign returns the signature of a body: sha256= and, in hexadecimal digits, the HMAC-SHA256 (RFC 2104) of
// the timestamp's header, a full stop, and the body.
func Sign(secret []byte, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(timestamp + "."))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// isLoopback tells whether a URL's host says that it is this very host.
func isLoopback(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// shared is 100.64.0.0/10, which providers use behind their NAT (RFC 6598).
var shared = netip.MustParsePrefix("100.64.0.0/10")

// guard refuses to connect to addresses that a URL must not lead to. It sees what a name was resolved to,
// so a name that changes its mind is caught, too.
type guard struct {
	loopback bool // the URL itself says that it is this host
	private  bool // private addresses are meant
}

func (g guard) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("connect to %s: %w", address, err)
	}
	addr := to.Addr().Unmap()
	switch {
	case g.loopback && addr.IsLoopback():
		return nil
	case g.loopback: // it may be http, and a resolver may say anything of localhost
		return refusedTarget{addr, "is not this very host, which the URL names"}
	case !addr.IsGlobalUnicast(): // loopback, link-local (cloud metadata), multicast, unspecified
		return refusedTarget{addr, "is not an address of another host"}
	case (addr.IsPrivate() || shared.Contains(addr)) && !g.private:
		return refusedTarget{addr, "is private; set notify.allow_private: true if that is meant"}
	}
	return nil
}

// refusedTarget says that the guard stopped a connection. To try again would not help.
type refusedTarget struct {
	addr netip.Addr
	why  string
}

func (r refusedTarget) Error() string { return fmt.Sprintf("%s %s", r.addr, r.why) }

// message is a notification on its way.
type message struct {
	event    Event
	delivery string
	body     []byte
}

// sender posts messages.
type sender struct {
	Target
	http *http.Client
	now  func() time.Time
	wait func(context.Context, time.Duration) error
}

// Target is where notifications go.
type Target struct {
	URL          string
	Secret       []byte        // what bodies are signed with; empty: they are not signed
	Timeout      time.Duration // of one attempt
	Attempts     int           // at one notification, in all
	AllowPrivate bool          // the URL may lead to private addresses
	Agent        string        // the User-Agent
	TLS          *tls.Config   // nil: the system's authorities
}

func newSender(t Target, now func() time.Time, wait func(context.Context, time.Duration) error) *sender {
	g := guard{private: t.AllowPrivate}
	if u, err := url.Parse(t.URL); err == nil {
		g.loopback = isLoopback(u.Hostname())
	}
	dialer := &net.Dialer{Timeout: t.Timeout, Control: g.control}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if t.TLS != nil {
		config = t.TLS.Clone()
	}
	return &sender{Target: t, now: now, wait: wait, http: &http.Client{
		Timeout: t.Timeout,
		// No proxy: it would be the proxy's connection that the guard sees.
		Transport: &http.Transport{DialContext: dialer.DialContext, TLSClientConfig: config, TLSHandshakeTimeout: t.Timeout,
			MaxConnsPerHost: 1, IdleConnTimeout: 10 * time.Second, MaxResponseHeaderBytes: 16 << 10, ForceAttemptHTTP2: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// The pauses between attempts double from the first to the longest.
const (
	firstPause   = time.Second
	longestPause = time.Minute
)

// send posts a message, several times if need be.
func (s *sender) send(ctx context.Context, m message) error {
	pause := firstPause
	for attempt := 1; ; attempt++ {
		again, after, err := s.post(ctx, m)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("attempt %d of %d: %w", attempt, s.Attempts, err)
		if !again || attempt >= s.Attempts {
			return err
		}
		// Up to half as long again, so that a fleet does not come back as one.
		wait := max(after, pause+rand.N(pause/2))
		if werr := s.wait(ctx, min(wait, longestPause)); werr != nil {
			return errors.Join(err, werr)
		}
		pause = min(2*pause, longestPause)
	}
}

// post makes one attempt. It says whether another makes sense, and how long the other side asks to wait.
func (s *sender) post(ctx context.Context, m message) (again bool, after time.Duration, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, bytes.NewReader(m.body))
	if err != nil {
		return false, 0, err
	}
	timestamp := strconv.FormatInt(s.now().Unix(), 10)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", s.Agent)
	r.Header.Set(HeaderEvent, string(m.event))
	r.Header.Set(HeaderDelivery, m.delivery)
	r.Header.Set(HeaderTimestamp, timestamp)
	if len(s.Secret) > 0 {
		r.Header.Set(HeaderSignature, Sign(s.Secret, timestamp, m.body))
	}
	answer, err := s.http.Do(r)
	if err != nil {
		var refused refusedTarget
		// The URL may hold a token in its path: it is not shown.
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return !errors.As(err, &refused), 0, err
	}
	defer answer.Body.Close()
	_, _ = io.CopyN(io.Discard, answer.Body, 4096) // so that the connection can be used again
	switch code := answer.StatusCode; {
	case code >= 200 && code < 300:
		return false, 0, nil
	case code >= 300 && code < 400:
		return false, 0, fmt.Errorf("the webhook answered %d; redirects are not followed: name the URL that it is now", code)
	case code == http.StatusRequestTimeout, code == http.StatusTooManyRequests, code >= 500:
		seconds, err := strconv.Atoi(strings.TrimSpace(answer.Header.Get("Retry-After")))
		if err != nil || seconds < 0 {
			seconds = 0
		}
		return true, time.Duration(min(seconds, 3600)) * time.Second, fmt.Errorf("the webhook answered %d", code)
	default:
		return false, 0, fmt.Errorf("the webhook answered %d", code)
	}
}
