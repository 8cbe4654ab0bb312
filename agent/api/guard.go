package api

import (
	"context"
	"crypto/tls"
	"errors"
	"math"
	"net"
	"net/http"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// door is one way in: the Unix socket or the TCP listener. It lets through what may be asked for at
// all, says who asks, and bounds how often.
type door struct {
	*Server
	tcp   *TCP // nil: the Unix socket
	certs *certificates

	addresses *rates // requests, by address
	failures  *rates // bad credentials, by address
	actors    *rates // requests, by token or certificate
	bodies    *bodies
	weights   weights
}

type connKey struct{}

// heldOf finds the connection that a request came on.
func heldOf(ctx context.Context) *held {
	c, _ := ctx.Value(connKey{}).(net.Conn)
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	h, _ := c.(*held)
	return h
}

// headers are on every answer: no browser shows it as anything but data, and nothing keeps it.
var headers = map[string]string{
	"X-Content-Type-Options":       "nosniff",
	"Cache-Control":                "no-store",
	"Content-Security-Policy":      "default-src 'none'; frame-ancestors 'none'",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Referrer-Policy":              "no-referrer",
}

// serve serves a request, if it may be.
func (d *door) serve(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h := heldOf(r.Context()); h != nil {
			h.begin()
			defer h.end()
		}
		for name, value := range headers {
			w.Header().Set(name, value)
		}
		if d.tcp != nil {
			w.Header().Set("Strict-Transport-Security", "max-age=31536000")
		}
		by, p := d.admit(w, r)
		by.Agent = r.UserAgent()
		note(w, by, "")
		if p != nil {
			writeProblem(w, p)
			return
		}
		// A copy: the server looks at its own request's body to tell whether it was read to its end. If it
		// were another one, what is left of a body would be taken for the next requests.
		known := r.WithContext(context.WithValue(withActor(r.Context(), by), weightsKey{}, d.weights))
		if r.URL.Path != bulkPath { // which is read as it comes
			known.Body = http.MaxBytesReader(w, r.Body, maxBody+1)
		}
		w, free, ok := d.bodies.take(w, known, actorKeyOf(by))
		if !ok {
			writeProblem(w, busy("there are too many large requests at once"))
			return
		}
		defer free()
		next.ServeHTTP(w, known)
		r.Pattern = known.Pattern // the mux tells the copy
	})
}

// admit says who asks, and why that is as far as it goes, if it is.
func (d *door) admit(w http.ResponseWriter, r *http.Request) (by state.Actor, p *Problem) {
	h := heldOf(r.Context())
	if d.tcp != nil {
		if h != nil {
			by.Address = remoteOf(h.Conn)
		}
		if wait := d.addresses.allow(addressKey(by.Address.Addr())); wait > 0 {
			return by, tooOften(w, wait, "there are too many requests from your address")
		}
	} else if h != nil {
		h.cred.Pid = max(h.cred.Pid, 0)
		by = d.peers.actor(h.cred)
	}
	if p := d.decent(r); p != nil {
		return by, p
	}
	known, err := d.identify(r, by)
	if err != nil {
		if wait := d.failures.allow(addressKey(by.Address.Addr())); d.tcp != nil && wait > 0 {
			p = tooOften(w, wait, "there are too many bad credentials from your address")
		} else {
			w.Header().Set("WWW-Authenticate", `Bearer realm="levee"`)
			p = newProblem(http.StatusUnauthorized, state.CodeUnauthorized, "this takes a token or a client certificate that is good; levee token list shows which there are")
		}
		p.inside = err.Error()
		if e, ok := errors.AsType[*state.TokenError](err); ok {
			by.Name, by.ID = e.Name, e.ID
			by.Kind = state.ActorToken
			by.Scopes = nil
		}
		return by, p
	}
	if len(known.Scopes) == 0 {
		return known, newProblem(http.StatusForbidden, state.CodeForbidden, "you may not: be root, or in the group that the setting api.group names")
	}
	if known.Kind != state.ActorPeer {
		if wait := d.actors.allow(string(known.Kind) + ":" + known.ID); wait > 0 {
			return known, tooOften(w, wait, "there are too many requests with your credentials")
		}
	}
	return known, nil
}

// identify says who asks: a token speaks first, then a certificate, then the kernel.
func (d *door) identify(r *http.Request, by state.Actor) (state.Actor, error) {
	if given := r.Header.Values("Authorization"); len(given) > 0 {
		scheme, token, _ := strings.Cut(given[0], " ")
		if len(given) > 1 || !strings.EqualFold(scheme, "Bearer") || len(token) > 256 {
			return state.Actor{}, errors.New("there is no bearer token in the header Authorization")
		}
		known, err := d.config.Backend.Authenticate(strings.TrimSpace(token), by.Address.Addr())
		known.Address, known.UID, known.GID, known.PID = by.Address, by.UID, by.GID, by.PID
		return known, err
	}
	if d.tcp == nil {
		return by, nil
	}
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return state.Actor{}, errors.New("there is neither a token nor a certificate")
	}
	if err := d.certs.verify(heldOf(r.Context()), r.TLS); err != nil {
		return state.Actor{}, err
	}
	known, err := d.tcp.client(r.TLS)
	known.Address = by.Address
	return known, err
}

func tooOften(w http.ResponseWriter, wait time.Duration, detail string) *Problem {
	seconds := int(math.Ceil(wait.Seconds()))
	w.Header().Set("Retry-After", strconv.Itoa(max(seconds, 1)))
	return newProblem(http.StatusTooManyRequests, state.CodeLimited, detail+"; Retry-After says when to come again")
}

// decent refuses what no honest client sends: another host's name, which is how a browser is tricked
// into asking; a page's request; a path that is written in a way that others may read otherwise.
func (d *door) decent(r *http.Request) *Problem {
	bad := func(status int, field, value, detail string) *Problem {
		p := newProblem(status, state.CodeInvalid, detail)
		if len(value) > 80 {
			value = value[:80] + "…"
		}
		p.Field, p.Value = field, value
		return p
	}
	if d.tcp != nil && !d.isHost(r) {
		return bad(http.StatusMisdirectedRequest, "host", r.Host, "is none of this server's names: those of its certificate, its address, and those of the setting api.tcp.hosts")
	}
	if origin := r.Header.Values("Origin"); len(origin) > 0 && (d.tcp == nil || len(origin) > 1 || origin[0] != "https://"+r.Host) {
		return bad(http.StatusForbidden, "origin", origin[0], "is another site's: its pages may not ask here")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		return bad(http.StatusForbidden, "sec-fetch-site", site, "another site's pages may not ask here")
	}
	escaped := strings.ToLower(r.URL.EscapedPath())
	if r.URL.Path == "" || r.URL.Path[0] != '/' || path.Clean(r.URL.Path) != r.URL.Path ||
		strings.Contains(escaped, "%2f") || strings.Contains(escaped, "%5c") || strings.ContainsFunc(r.URL.Path, func(c rune) bool { return c < ' ' || c == 0x7f || c == '\\' }) {
		return bad(http.StatusBadRequest, "path", r.URL.EscapedPath(), "is not written as the API has it: no //, no . and .., no slashes in disguise")
	}
	return nil
}

// isHost tells whether a request is meant for this server.
func (d *door) isHost(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if slices.Contains(d.tcp.Hosts, host) || host != "" && d.certs.named(host) {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	if err != nil {
		return false
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && local.AddrPort().Addr().Unmap() == a.Unmap()
}
