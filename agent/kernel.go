package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/metrics"
	"github.com/levee-xdp/levee/agent/reconcile"
	"github.com/levee-xdp/levee/loader"
	"github.com/levee-xdp/levee/maps"
)

// Kernel opens the kernel's side of a shield.
type Kernel interface {
	// Probe says what the host lacks.
	Probe(root string) loader.Report
	// Open adopts what is pinned, or makes it. As soon as no other daemon can hold the lock, locked is
	// called.
	Open(ctx context.Context, c *config.Config, log *slog.Logger, locked func()) (Shield, error)
}

// Shield is a pinned set of tables and the programs on interfaces. loader.Set says more of each.
type Shield interface {
	Adopted() (bool, string)
	Attach(name string, mode loader.Mode) (loader.Attachment, error)
	Detach(name string) error
	Attachments() ([]loader.Attachment, error)
	Want(name string, mode loader.Mode) error
	Upgrade() ([]loader.Attachment, error)
	Watch(ctx context.Context) error
	Tables() Tables
	// Replaced returns what stands in a set that is in force until Upgrade replaces it. Returns a
	// *loader.SchemaError if that is of another schema.
	Replaced() (maps.Held, error)
	Close() error
}

// Tables is the tables of a set. maps.Tables says more of each.
type Tables struct {
	Bans       Bans
	Allows     Allows
	Limits     Limits
	Sources    Sources
	Counters   metrics.Counters
	Events     Events
	Control    Control
	Interfaces Interfaces
}

// Bans is the ban table.
type Bans interface {
	reconcile.Bans
	Lookup(netip.Addr) (maps.Ban, bool)
	Slots() (v4, v6 int)
	Capacity() (v4, v6 int)
}

// Allows is the allow list.
type Allows interface {
	reconcile.Allows
	All() ([]maps.Allow, error)
	Len() int
	Capacity() int
}

// Limits is the table of limits.
type Limits interface {
	reconcile.Limits
	All() map[uint8]maps.Limit
}

// Sources is the table of tracked sources.
type Sources interface {
	Top(n int, by maps.Order) ([]maps.Source, error)
	Lookup(netip.Addr) ([]maps.Source, error)
	Len() (int, error)
	Capacity() int
}

// Events is the program's samples.
type Events interface {
	Run(ctx context.Context, each func(maps.Event)) error
}

// Control is the run-time switches.
type Control interface {
	reconcile.Control
	SetPanic(on bool)
	Panic() bool
}

// Interfaces is the slots of the counters.
type Interfaces interface {
	List() []maps.Interface
}

// System is the kernel that this runs on.
type System struct{}

// Probe says what the host lacks.
func (System) Probe(root string) loader.Report { return loader.Probe(root) }

// Open adopts what is pinned, or makes it.
func (System) Open(ctx context.Context, c *config.Config, logger *slog.Logger, locked func()) (_ Shield, err error) {
	want := loader.Config{Root: c.BPFFS, Lock: c.Lock, Sizes: c.Tables.Sizes(), Features: c.Features.Program(), Log: logger, Locked: locked}
	if c.Compile.Enabled {
		spec, report, err := loader.Compile(ctx, loader.CompileConfig{CacheDir: c.Compile.Cache, Clang: c.Compile.Clang})
		if err != nil {
			logger.Warn("the program could not be compiled on this host, the one that Levee brings along does as well", "error", err)
		} else {
			logger.Info("the program was compiled on this host", "clang", report.Version, "cpu", report.CPU, "cached", report.Cached, "took", report.Took)
			want.Spec = spec
		}
	}
	set, err := loader.Open(want)
	if err != nil {
		return nil, err
	}
	tables, err := maps.Open(set.Maps())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open the tables: %w", err), set.Close())
	}
	return &shield{Set: set, tables: tables}, nil
}

type shield struct {
	*loader.Set
	tables *maps.Tables
}

func (s *shield) Tables() Tables {
	t := s.tables
	return Tables{Bans: t.Bans, Allows: t.Allows, Limits: t.Limits, Sources: t.Sources,
		Counters: t.Counters, Events: t.Events, Control: t.Control, Interfaces: t.Interfaces}
}

// Replaced returns what stands in the pinned set that this one replaces.
func (s *shield) Replaced() (held maps.Held, err error) {
	old, err := s.Set.Replaced()
	if err != nil || old == nil {
		return held, err
	}
	held, err = maps.ReadHeld(old)
	for _, m := range old {
		err = errors.Join(err, m.Close())
	}
	return held, err
}

// Close lets go of the descriptors. What is attached stays attached.
func (s *shield) Close() error { return errors.Join(s.tables.Close(), s.Set.Close()) }
