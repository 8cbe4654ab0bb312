package httpguard

import (
	"bufio"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// setHeaders says how the keys of a request stand with their limits, in the form of
// draft-ietf-httpapi-ratelimit-headers-10: RateLimit-Policy is what a limit grants (q units in w
// seconds), RateLimit what is left of it (r units, all of them again in t seconds).
func setHeaders(h http.Header, stand []standing) {
	if len(stand) == 0 {
		return
	}
	var policy, rest []byte
	for i := range stand {
		s := &stand[i]
		if i > 0 {
			policy, rest = append(policy, ", "...), append(rest, ", "...)
		}
		policy = parameter(append(append(append(policy, '"'), s.limit.Name...), '"'), ";q=", s.limit.burst)
		policy = parameter(policy, ";w=", up(s.limit.burst*s.limit.step))
		rest = parameter(append(append(append(rest, '"'), s.limit.Name...), '"'), ";r=", max(0, s.rest))
		rest = parameter(rest, ";t=", up(s.reset))
	}
	h["Ratelimit-Policy"] = []string{string(policy)}
	h["Ratelimit"] = []string{string(rest)}
}

func parameter(b []byte, name string, n int64) []byte {
	return strconv.AppendInt(append(b, name...), n, 10)
}

// up is ns as seconds, rounded up.
func up(ns int64) int64 { return (max(0, ns) + int64(time.Second) - 1) / int64(time.Second) }

// seconds is a Retry-After: a second at least.
func seconds(ns int64) string { return strconv.FormatInt(max(1, up(ns)), 10) }

// deny answers with a problem document (RFC 9457), of the type that the draft of the RateLimit
// headers gives to used-up quotas.
func deny(w http.ResponseWriter, _ *http.Request, d Denial) {
	p := struct {
		Type     string   `json:"type"`
		Title    string   `json:"title"`
		Status   int      `json:"status"`
		Detail   string   `json:"detail"`
		Violated []string `json:"violated-policies,omitempty"`
	}{Type: "about:blank", Title: "Too Many Requests", Status: http.StatusTooManyRequests,
		Detail: "Requests from here are refused for a while; try again in " + seconds(int64(d.RetryAfter)) + " s."}
	if !d.Blocked {
		p.Type, p.Violated = "https://iana.org/assignments/http-problem-types#quota-exceeded", d.Limits
		p.Detail = "There were too many requests (" + strings.Join(d.Limits, ", ") + "); try again in " + seconds(int64(d.RetryAfter)) + " s."
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a client that has gone needs no answer
}

// recorder notes the status of an answer. It can do what the writer below it can.
type recorder struct {
	http.ResponseWriter
	code int
}

func (r *recorder) status() int {
	if r.code == 0 {
		return http.StatusOK
	}
	return r.code
}

// WriteHeader notes the final status; those of 1xx come before it.
func (r *recorder) WriteHeader(code int) {
	if r.code == 0 && (code >= 200 || code == http.StatusSwitchingProtocols) {
		r.code = code
	}
	r.ResponseWriter.WriteHeader(code)
}

func (r *recorder) Write(b []byte) (int, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return r.ResponseWriter.Write(b)
}

// ReadFrom keeps sendfile.
func (r *recorder) ReadFrom(from io.Reader) (int64, error) {
	if r.code == 0 {
		r.code = http.StatusOK
	}
	return io.Copy(r.ResponseWriter, from)
}

// Flush implements http.Flusher.
func (r *recorder) Flush() { _ = http.NewResponseController(r.ResponseWriter).Flush() }

// Hijack implements http.Hijacker.
func (r *recorder) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(r.ResponseWriter).Hijack()
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
