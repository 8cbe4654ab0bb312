package metrics

import (
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// Counters is what the kernel counts; *maps.Counters has it. The counts outlive the daemon.
type Counters interface {
	Read() ([]maps.Count, error)
	Lists() ([]maps.ListCount, error)
	Limits() ([]maps.LimitCount, error)
	Stats() ([bpf.StatMax]uint64, error)
}

// Daemon is what the daemon knows.
type Daemon interface {
	// Snapshot returns what is so at this moment.
	Snapshot() (Snapshot, error)
	// OriginOf names the origin of a list; empty if none is known.
	OriginOf(list uint16) state.Origin
}

// Snapshot is what is so at one moment.
type Snapshot struct {
	Slots      []maps.Interface // who has the slots of the counters
	Interfaces []state.InterfaceView
	Limits     []state.Limit
	Origins    []state.OriginCount
	IPv4, IPv6 int           // prefixes banned
	Tables     []state.Table // by TableIPv4Bans and the like
	Tracked    int           // sources
	Panic      bool
	Monitor    bool
	Reconciled state.Reconciled
}

// The names of tables: those of the settings that size them.
const (
	TableIPv4Bans = "ipv4_bans"
	TableIPv6Bans = "ipv6_bans"
	TableSources  = "sources"
	TableAllows   = "allows"
)
