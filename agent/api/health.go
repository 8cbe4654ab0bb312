package api

import (
	"encoding/json"
	"net/http"

	"github.com/levee-xdp/levee/agent/state"
)

// healthz says that the daemon lives, and what is wrong with it. readyz says whether all is well.
func (b backend) healthz(w http.ResponseWriter, _ *http.Request) {
	writeHealth(w, http.StatusOK, b.Health())
}

func (b backend) readyz(w http.ResponseWriter, _ *http.Request) {
	h, code := b.Health(), http.StatusOK
	if h.State != "ok" {
		code = http.StatusServiceUnavailable
	}
	writeHealth(w, code, h)
}

func writeHealth(w http.ResponseWriter, code int, h state.Health) {
	h.Problems = orEmpty(h.Problems)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(h) // a peer that has gone needs no answer
}

func writeProblem(w http.ResponseWriter, p *Problem) {
	noteProblem(w, p)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // a peer that has gone needs no answer
}
