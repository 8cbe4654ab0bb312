package agent

import (
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// What can be done to the shield without a daemon, through what is pinned. The root is where it is
// pinned; empty for the default.
var (
	// ErrNothingPinned says that there is no shield on this host.
	ErrNothingPinned = loader.ErrNoSet
	// ErrNotAttached says that an interface is not shielded.
	ErrNotAttached = loader.ErrNotAttached
)

// PinnedRoot is where the shield is pinned if nobody says otherwise.
const PinnedRoot = loader.DefaultRoot

// SetPinnedPanic throws the pinned panic switch: while it is on, every packet passes. Returns
// ErrNothingPinned if there is no shield.
func SetPinnedPanic(root string, on bool) error {
	return loader.SetPanic(orDefaultRoot(root), on)
}

// DetachPinned takes the shield off an interface. Returns ErrNotAttached if it is not shielded.
func DetachPinned(root, name string) error {
	return loader.DetachInterface(orDefaultRoot(root), name)
}

// RemovePinned takes the whole shield down, off every interface, and returns what it did, a line
// each. Bans, allow entries and limits stay in the state, for the next start.
func RemovePinned(root string) ([]string, error) {
	return loader.Remove(orDefaultRoot(root))
}

func orDefaultRoot(root string) string {
	if root == "" {
		return PinnedRoot
	}
	return root
}

// Examine says what on this host stands in the way of Levee, or could be better, and likewise for each
// interface. It changes nothing.
func Examine(root string, interfaces []string) (kernel string, findings []state.Finding) {
	host := loader.Probe(root)
	add := func(r loader.Report) {
		for _, f := range r.Findings {
			findings = append(findings, state.Finding{Severity: f.Severity.String(), Subject: f.Subject, Message: f.Message, Advice: f.Advice})
		}
	}
	add(host)
	for _, name := range interfaces {
		add(loader.ProbeInterface(name))
	}
	return host.Kernel, findings
}
