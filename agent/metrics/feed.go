package metrics

import (
	"fmt"

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

// Daemon is what the daemon knows; Feed has it.
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
	Tables     []state.Table // see TableIPv4Bans and the like
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

// Feed reads the daemon's state and the kernel's tables.
type Feed struct {
	Tables     *maps.Tables
	State      *state.Store
	Interfaces func() ([]state.InterfaceView, error)
	Reconciled func() state.Reconciled
}

// OriginOf implements Daemon.
func (f *Feed) OriginOf(list uint16) state.Origin { return f.State.OriginOf(list) }

// Snapshot implements Daemon.
func (f *Feed) Snapshot() (Snapshot, error) {
	tracked, err := f.Tables.Sources.Len()
	if err != nil {
		return Snapshot{}, err
	}
	interfaces, err := f.Interfaces()
	if err != nil {
		return Snapshot{}, fmt.Errorf("list interfaces: %w", err)
	}
	s := Snapshot{
		Slots:      f.Tables.Interfaces.List(),
		Interfaces: interfaces,
		Limits:     f.State.Limits(),
		Origins:    f.State.Origins(),
		Tables:     TablesOf(f.Tables, tracked),
		Tracked:    tracked,
		Panic:      f.Tables.Control.Panic(),
		Monitor:    f.Tables.Control.Monitor(),
		Reconciled: f.Reconciled(),
	}
	s.IPv4, s.IPv6 = f.State.Prefixes()
	return s, nil
}

// TablesOf returns how full the kernel's tables are, when so many sources are tracked.
func TablesOf(t *maps.Tables, tracked int) []state.Table {
	used4, used6 := t.Bans.Slots()
	have4, have6 := t.Bans.Capacity()
	return []state.Table{
		{Table: TableIPv4Bans, Entries: used4, Capacity: have4},
		{Table: TableIPv6Bans, Entries: used6, Capacity: have6},
		{Table: TableSources, Entries: tracked, Capacity: t.Sources.Capacity()},
		{Table: TableAllows, Entries: t.Allows.Len(), Capacity: t.Allows.Capacity()},
	}
}
