package api

import (
	"net/http"

	"github.com/levee-xdp/levee/agent/state"
)

// observed reports the route and the code of every answer, and to the audit log what was refused.
func (s *Server) observed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rec := &recorder{ResponseWriter: w, code: http.StatusOK}
		defer func() {
			route := r.Pattern
			if route == "" {
				route = "other"
			}
			s.config.Observe(route, rec.code)
			if s.config.Audit != nil && rec.refusal(r) {
				s.config.Audit.Refuse(rec.event(r))
			}
		}()
		next.ServeHTTP(rec, r)
	})
}

// recorder notes what became of a request.
type recorder struct {
	http.ResponseWriter
	code    int
	by      state.Actor
	action  string   // the operation's id
	problem *Problem // that was answered
}

// WriteHeader notes the code.
func (r *recorder) WriteHeader(code int) {
	r.code = code
	r.ResponseWriter.WriteHeader(code)
}

// Unwrap is for http.ResponseController.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// recorderOf finds the recorder under what was put over it; nil where nobody records.
func recorderOf(w http.ResponseWriter) *recorder {
	for {
		if r, ok := w.(*recorder); ok {
			return r
		}
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return nil
		}
		w = u.Unwrap()
	}
}

// note notes who asks, and for what.
func note(w http.ResponseWriter, by state.Actor, action string) {
	if r := recorderOf(w); r != nil {
		if r.action = action; action == "" {
			r.by = by
		}
	}
}

// noteProblem notes a problem that is about to be answered. Where the same may be asked again, the
// answer says when.
func noteProblem(w http.ResponseWriter, p *Problem) {
	if (p.Code == state.CodeBusy || p.Code == state.CodeLimited) && w.Header().Get("Retry-After") == "" {
		w.Header().Set("Retry-After", "1")
	}
	if r := recorderOf(w); r != nil {
		r.problem = p
	}
}

// refusal tells whether what was answered is one for the audit log. What the backend refused it has
// written itself, and who asks for what is not there has changed nothing.
func (r *recorder) refusal(q *http.Request) bool {
	if r.problem == nil || r.problem.decided || r.code < 400 || r.code >= 500 && r.problem.Code != state.CodeBusy {
		return false
	}
	if q.Method != http.MethodGet && q.Method != http.MethodHead {
		return true
	}
	switch r.code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest, http.StatusTooManyRequests:
		return true
	}
	return false
}

func (r *recorder) event(q *http.Request) *state.AuditEvent {
	action, p := r.action, r.problem
	switch {
	case p.Code == state.CodeUnauthorized, p.inside != "":
		action = "authenticate"
	case action == "":
		action = "request"
	}
	reason := p.Detail
	if p.Field != "" {
		reason = p.Field + ": " + reason
	}
	if p.inside != "" {
		reason = p.inside
	}
	return &state.AuditEvent{Action: action, Refused: true, Code: p.Code, Reason: reason, By: r.by,
		Method: q.Method, Path: q.URL.Path, Status: r.code}
}
