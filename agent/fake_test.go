package agent

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/protect"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/loader"
	kernel "github.com/levee-xdp/levee/maps"
)

// fakeKernel is a value that stands in for the kernel. What is pinned outlives its shields.
type fakeKernel struct {
	mu          sync.Mutex
	links       []string // interfaces that there are
	foreign     string   // one that somebody else's program sits on
	stuck       string   // one that can't be attached or detached
	attaching   func()   // called when an interface has been attached; may be nil
	room        int      // for bans
	onPut       func()   // called before a ban is put, or taken away; may be nil
	onDelete    func()
	bans        map[netip.Prefix]kernel.Ban
	replaced    kernel.Held // by a set of another size
	schema      error       // what keeps it from being read
	upgrade     error       // what keeps the program from being upgraded
	allows      map[netip.Prefix]kernel.Allow
	limits      map[uint8]kernel.Limit
	attachments []loader.Attachment
	counts      []kernel.Count
	lists       []kernel.ListCount
	limitCounts []kernel.LimitCount
	sources     []kernel.Source
	noLimits    atomic.Bool // limits can't be written
	noCounters  atomic.Bool // nor counters read
	noList      atomic.Bool // nor what is attached
	panic       atomic.Bool // no lock: an admin who asks for it is not to wait for the fake
	switches    kernel.Switches
	pinned      bool
	held        bool
	findings    []loader.Finding
	events      chan kernel.Event
}

func newFakeKernel() *fakeKernel {
	return &fakeKernel{links: []string{"eth0", "eth1", "eth2"}, foreign: "eth2", room: 1000, bans: map[netip.Prefix]kernel.Ban{},
		allows: map[netip.Prefix]kernel.Allow{}, limits: map[uint8]kernel.Limit{}, events: make(chan kernel.Event)}
}

func (k *fakeKernel) Probe(string) loader.Report { return loader.Report{Findings: k.findings} }

func (k *fakeKernel) Open(_ context.Context, c *config.Config, _ *slog.Logger, locked func()) (Shield, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held {
		return nil, &loader.LockedError{Path: c.Lock, PID: 4711}
	}
	locked()
	s := &fakeShield{k, k.pinned}
	k.pinned, k.held = true, true
	return s, nil
}

// show is what is in force, as text.
func (k *fakeKernel) show() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for p, b := range k.bans {
		mode := ""
		if b.Monitor {
			mode = " monitor"
		}
		out = append(out, p.String()+mode)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// allowed is the allow entries in force, as text, without those that every host has.
func (k *fakeKernel) allowed() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []string
	for p := range k.allows {
		if s := p.String(); !slices.Contains([]string{"127.0.0.0/8", "::1/128", "0.0.0.0/32", "::/128", "fe80::/10"}, s) {
			out = append(out, s)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

type fakeShield struct {
	*fakeKernel
	adopted bool
}

func (s *fakeShield) Adopted() (bool, string) { return s.adopted, "nothing was pinned" }

func (s *fakeShield) Attach(name string, mode loader.Mode) (loader.Attachment, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.links, name) {
		return loader.Attachment{}, fmt.Errorf("attach %s: %w", name, loader.ErrNoInterface)
	}
	defer func() {
		if s.attaching != nil {
			s.attaching()
		}
	}()
	if name == s.stuck {
		return loader.Attachment{}, fmt.Errorf("attach %s: %w", name, syscall.EBUSY)
	}
	if name == s.foreign {
		return loader.Attachment{}, &loader.ForeignError{Name: name, ProgramID: 42, Program: "other", Tag: "abc"}
	}
	if mode == loader.ModeAuto {
		mode = loader.ModeNative
	}
	for i, a := range s.attachments {
		if a.Name == name {
			s.attachments[i].Mode, a.Mode = mode, mode
			return a, nil
		}
	}
	a := loader.Attachment{Name: name, Ifindex: 1 + slices.Index(s.links, name), Slot: uint32(len(s.attachments)), Mode: mode, ProgramID: 7, ProgramTag: "0123456789abcdef"}
	s.attachments = append(s.attachments, a)
	return a, nil
}

func (s *fakeShield) Detach(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name == s.stuck {
		return fmt.Errorf("detach %s: %w", name, syscall.EBUSY)
	}
	n := len(s.attachments)
	s.attachments = slices.DeleteFunc(s.attachments, func(a loader.Attachment) bool { return a.Name == name })
	if len(s.attachments) == n {
		return fmt.Errorf("detach %s: %w", name, loader.ErrNotAttached)
	}
	return nil
}

func (s *fakeShield) Attachments() ([]loader.Attachment, error) {
	if s.noList.Load() {
		return nil, syscall.ENOMEM
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.attachments), nil
}

func (s *fakeShield) Want(string, loader.Mode) error        { return nil }
func (s *fakeShield) Upgrade() ([]loader.Attachment, error) { return nil, s.upgrade }
func (s *fakeShield) Watch(ctx context.Context) error       { <-ctx.Done(); return nil }
func (s *fakeShield) Replaced() (kernel.Held, error)        { return s.replaced, s.schema }
func (s *fakeShield) Close() error                          { s.mu.Lock(); defer s.mu.Unlock(); s.held = false; return nil }
func (s *fakeShield) Tables() Tables {
	k := s.fakeKernel
	return Tables{Bans: fakeBans{k}, Allows: fakeAllows{k}, Limits: fakeLimits{k}, Sources: fakeSources{k},
		Counters: fakeCounters{k}, Events: fakeEvents{k}, Control: fakeControl{k}, Interfaces: fakeInterfaces{k}}
}

// fakeSystem is a value that stands in for the operating system.
type fakeSystem struct {
	mu                               sync.Mutex
	own, gateways, resolvers, logins []protect.Found
	fail                             error
}

func (s *fakeSystem) found(list *[]protect.Found) ([]protect.Found, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(*list), s.fail
}

func (s *fakeSystem) Own() ([]protect.Found, error)       { return s.found(&s.own) }
func (s *fakeSystem) Gateways() ([]protect.Found, error)  { return s.found(&s.gateways) }
func (s *fakeSystem) Resolvers() ([]protect.Found, error) { return s.found(&s.resolvers) }
func (s *fakeSystem) Sessions() ([]protect.Found, error)  { return s.found(&s.logins) }

type fakeBans struct{ *fakeKernel }

func (b fakeBans) PutMany(bans []kernel.Ban) (failed []error) {
	for i, ban := range bans {
		if err := b.Put(ban); err != nil {
			if failed == nil {
				failed = make([]error, len(bans))
			}
			failed[i] = err
		}
	}
	return failed
}

func (b fakeBans) Put(ban kernel.Ban) error {
	if b.onPut != nil {
		b.onPut()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, ok := b.bans[ban.Prefix]; !ok && len(b.bans) >= b.room {
		return &kernel.FullError{Prefix: ban.Prefix.String(), Table: "ban4_table", Used: b.room, Slots: b.room, Setting: "tables.ipv4_bans"}
	}
	b.bans[ban.Prefix] = ban
	return nil
}

func (b fakeBans) Delete(p netip.Prefix) bool {
	if b.onDelete != nil {
		b.onDelete()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	_, ok := b.bans[p]
	delete(b.bans, p)
	return ok
}

func (b fakeBans) Sync(wanted iter.Seq[kernel.Ban]) (kernel.Changes, error) {
	next := map[netip.Prefix]kernel.Ban{}
	for w := range wanted {
		next[w.Prefix] = w
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	c := kernel.Changes{}
	for p, w := range next {
		if b.bans[p] != w {
			c.Added++
		}
	}
	for p := range b.bans {
		if _, ok := next[p]; !ok {
			c.Removed++
		}
	}
	b.bans = next
	return c, nil
}

func (b fakeBans) Fill(wanted iter.Seq[kernel.Ban]) (kernel.Changes, error) { return b.Sync(wanted) }

func (b fakeBans) Compare(_ int, wanted func(netip.Prefix) (kernel.Ban, bool)) (next, differing int) {
	for ban := range b.All() {
		if w, ok := wanted(ban.Prefix); !ok || w != ban {
			differing++
		}
	}
	return -1, differing
}

func (b fakeBans) Lacks(bans []kernel.Ban) (lacking int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ban := range bans {
		if b.bans[ban.Prefix] != ban {
			lacking++
		}
	}
	return lacking
}

func (b fakeBans) Lookup(addr netip.Addr) (kernel.Ban, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var found kernel.Ban
	ok := false
	for bits := addr.BitLen(); bits >= 0; bits-- {
		p, _ := addr.Prefix(bits)
		if ban, known := b.bans[p]; known && ban.Expires > kernel.Monotonic() && (!ok || found.Monitor) {
			found, ok = ban, true
		}
	}
	return found, ok
}

func (b fakeBans) Len() (v4, v6 int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range b.bans {
		if p.Addr().Is4() {
			v4++
		} else {
			v6++
		}
	}
	return v4, v6
}

func (b fakeBans) Slots() (v4, v6 int)    { return b.Len() }
func (b fakeBans) Capacity() (v4, v6 int) { return b.room, b.room }

// All makes no copy, as the kernel's table does not.
func (b fakeBans) All() iter.Seq[kernel.Ban] {
	return func(yield func(kernel.Ban) bool) {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, ban := range b.bans {
			b.mu.Unlock()
			more := yield(ban)
			b.mu.Lock()
			if !more {
				return
			}
		}
	}
}

type fakeAllows struct{ *fakeKernel }

func (a fakeAllows) Sync(wanted iter.Seq[kernel.Allow]) (kernel.Changes, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.allows = map[netip.Prefix]kernel.Allow{}
	for w := range wanted {
		if len(a.allows) >= a.room {
			return kernel.Changes{}, &kernel.FullError{Prefix: w.Prefix.String(), Table: "allows", Setting: "tables.allows"}
		}
		a.allows[w.Prefix] = w
	}
	return kernel.Changes{}, nil
}

func (a fakeAllows) All() ([]kernel.Allow, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Collect(maps.Values(a.allows)), nil
}

func (a fakeAllows) Len() int      { a.mu.Lock(); defer a.mu.Unlock(); return len(a.allows) }
func (a fakeAllows) Capacity() int { return 100 }

type fakeLimits struct{ *fakeKernel }

func (l fakeLimits) Sync(wanted map[uint8]kernel.Limit) (kernel.Changes, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noLimits.Load() {
		return kernel.Changes{}, syscall.ENOMEM
	}
	l.limits = maps.Clone(wanted)
	return kernel.Changes{}, nil
}

func (l fakeLimits) All() map[uint8]kernel.Limit {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.limits)
}

type fakeSources struct{ *fakeKernel }

func (s fakeSources) Top(n int, _ kernel.Order) ([]kernel.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.sources[:min(n, len(s.sources))]), nil
}

func (s fakeSources) Lookup(addr netip.Addr) ([]kernel.Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []kernel.Source
	for _, src := range s.sources {
		if src.Prefix.Contains(addr) {
			out = append(out, src)
		}
	}
	return out, nil
}

func (s fakeSources) Len() (int, error) { return len(s.sources), nil }
func (s fakeSources) Capacity() int     { return 1000 }

type fakeCounters struct{ *fakeKernel }

func (c fakeCounters) Read() ([]kernel.Count, error) {
	if c.noCounters.Load() {
		return nil, syscall.ENOMEM
	}
	return c.counts, nil
}
func (c fakeCounters) Lists() ([]kernel.ListCount, error)        { return c.lists, nil }
func (c fakeCounters) Limits() ([]kernel.LimitCount, error)      { return c.limitCounts, nil }
func (c fakeCounters) Stats() (s [bpf.StatMax]uint64, err error) { return s, nil }

type fakeEvents struct{ *fakeKernel }

func (e fakeEvents) Run(ctx context.Context, each func(kernel.Event)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev := <-e.events:
			each(ev)
		}
	}
}

type fakeControl struct{ *fakeKernel }

func (c fakeControl) SetPanic(on bool) { c.panic.Store(on) }
func (c fakeControl) Panic() bool      { return c.panic.Load() }
func (c fakeControl) Sync(s kernel.Switches) (changes kernel.Changes, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.switches != s {
		changes.Updated++
	}
	c.switches = s
	return changes, nil
}

type fakeInterfaces struct{ *fakeKernel }

func (i fakeInterfaces) List() (out []kernel.Interface) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range i.attachments {
		out = append(out, kernel.Interface{Slot: a.Slot, Index: a.Ifindex, Name: a.Name, Mode: kernel.AttachMode(a.Mode)})
	}
	return out
}
