package state

// Finding is one thing about a host that Levee needs or would like otherwise.
type Finding struct {
	Severity string `json:"severity" enum:"note,warning,fatal"` // fatal: it does not work; warning: slower, or in part
	Subject  string `json:"subject"`                            // an interface's name, or a word: privileges, kernel, bpffs, …
	Message  string `json:"message"`
	Advice   string `json:"advice,omitempty"`
}

// The severities of findings.
const (
	FindingNote    = "note"
	FindingWarning = "warning"
	FindingFatal   = "fatal"
)
