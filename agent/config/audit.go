package config

import (
	"path/filepath"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// Audit is where it is kept who changed what, and who was refused.
type Audit struct {
	Path   string      `json:"path"`    // empty: beside the state
	Size   state.Count `json:"size"`    // of a file, in bytes
	Files  state.Count `json:"files"`   // that are kept
	Copy   string      `json:"copy"`    // journald, syslog, or the path of a syslog socket; empty: nowhere
	OnFull string      `json:"on_full"` // what becomes of changes that can't be recorded
}

// What becomes of changes that can't be recorded.
const (
	AuditContinue = "continue"
	AuditRefuse   = "refuse"
)

// AuditPath is where the audit log is written: beside the state, if nobody says otherwise.
func (c *Config) AuditPath() string {
	if c.Audit.Path != "" {
		return c.Audit.Path
	}
	return filepath.Join(filepath.Dir(c.State.Path), "audit.jsonl")
}

func defaultAudit() Audit {
	return Audit{Size: 64_000_000, Files: 10, OnFull: AuditContinue}
}

func (a *Audit) problems() []*state.Error {
	var found []*state.Error
	bad := func(field, value, detail string) {
		found = append(found, &state.Error{Code: state.CodeInvalid, Field: "audit." + field, Value: value, Detail: detail})
	}
	if a.Size < 64_000 || a.Size > 16_000_000_000 {
		bad("size", a.Size.String(), "is not within 64k and 16G bytes")
	}
	if a.Files < 2 || a.Files > 1000 {
		bad("files", a.Files.String(), "is not within 2 and 1000")
	}
	switch {
	case a.Copy == "", a.Copy == "journald", a.Copy == "syslog":
	case !filepath.IsAbs(a.Copy) || strings.ContainsRune(a.Copy, 0):
		bad("copy", a.Copy, "is none of off, journald, syslog and the path of a syslog socket")
	}
	if a.OnFull != AuditContinue && a.OnFull != AuditRefuse {
		bad("on_full", a.OnFull, "is neither continue nor refuse")
	}
	return found
}
