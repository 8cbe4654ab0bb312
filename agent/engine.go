package agent

import (
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/levee-xdp/levee/agent/audit"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/events"
	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/agent/reconcile"
	"github.com/levee-xdp/levee/agent/state"
)

// engine does what the API is asked for: it takes a wish to the state, and when that is on disk to
// the kernel, and answers when both have it.
type engine struct {
	version string
	started time.Time
	file    string
	overlay func(*config.Config) error
	log     *slog.Logger
	level   *slog.LevelVar
	clock   state.Clock

	config     atomic.Pointer[config.Config]
	state      *state.Store
	shield     Shield
	tables     Tables
	reconciler *reconcile.Reconciler
	system     protect.System
	finder     *protect.Finder
	record     *metrics.Record
	audit      *audit.Log
	recent     recent
	events     *events.Hub
	ready      atomic.Bool
	listeners  []interface{ Problem() string } // none is added once the tasks run

	trials    trials
	checking  chan struct{} // full while a prefix is checked
	bulk      sync.Mutex    // held while a bulk that is taken whole is committed
	unbanning sync.Mutex    // held while all claims of an origin are taken back
	settings  sync.Mutex    // held while limits, allows, interfaces or the configuration change

	mu       sync.Mutex        // guards what follows
	lasting  []string          // problems for as long as the daemon runs
	troubles map[string]string // of interfaces, by name
}

// Panic tells whether everything passes.
func (e *engine) Panic() bool { return e.tables.Control.Panic() }

// SetPanic has everything pass, or ends that.
func (e *engine) SetPanic(by state.Actor, on bool) error {
	e.tables.Control.SetPanic(on)
	if on {
		e.log.Warn("the panic switch is on: everything passes", "actor", by.String())
	} else {
		e.log.Warn("the panic switch is off", "actor", by.String())
	}
	return nil
}
