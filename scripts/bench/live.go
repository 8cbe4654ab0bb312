package main

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/gaissmai/bart"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
)

// filter is one way of dropping what comes in at the wire's far end.
type filter struct {
	name string
	need string               // the command that it takes
	rate map[string][]float64 // frames a second, by arrangement
	wire *wire
	gen  *ebpf.Program
	note string
}

// live is the fourth part: frames through a veth pair, sent and dropped on one CPU, and with a CPU each.
func (b *bench) live(ctx context.Context) error {
	for _, v6 := range []bool{false, true} {
		if err := b.liveFamily(ctx, v6); err != nil {
			return fmt.Errorf("%s: %w", familyName(v6), err)
		}
	}
	return nil
}

func (b *bench) liveFamily(ctx context.Context, v6 bool) error {
	l := b.lists(v6)
	sh, err := newShield(b.sizes, l.bans)
	if err != nil {
		return err
	}
	defer sh.close()
	st, err := sh.newStage(0)
	if err != nil {
		return err
	}
	shielded, err := st.load(bpf.DefaultFeatures())
	if err != nil {
		return err
	}
	loads := make(map[string]*ebpf.Program)
	for name, reads := range map[string]uint32{sourceRead: 0, filterLine: readFilter, fewestLines: programReads[bannedSources]} {
		if loads[name], err = st.loadReads(reads); err != nil {
			return err
		}
	}
	rivals, err := newRivals(nil, nil, 1024)
	if err != nil {
		return err
	}
	defer rivals.close()
	w, err := newWrappers(false)
	if err != nil {
		return err
	}
	defer w.close()

	listed := source{bannedSources, drawSequence, l.banned}
	filters := []*filter{
		{name: bare}, {name: sourceRead}, {name: filterLine}, {name: fewestLines}, {name: levee},
		{name: "nftables", need: "nft"},
		{name: "ipset + iptables", need: "ipset"},
		{name: "xdp-filter", need: "xdp-filter"},
		{name: "nothing"},
	}
	var up []*filter
	for i, f := range filters {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.need != "" {
			if _, err := exec.LookPath(f.need); err != nil {
				b.report.Notes = append(b.report.Notes, fmt.Sprintf("live: %s left out: %s is not installed", f.name, f.need))
				continue
			}
		}
		if f.wire, err = newWire(b.meter.cpu, i); err != nil {
			return err
		}
		defer f.wire.close()
		src := listed
		start := time.Now()
		switch f.name {
		case bare:
			err = f.wire.attach(rivals.bare)
		case sourceRead, filterLine, fewestLines:
			err = f.wire.attach(loads[f.name])
		case levee:
			err = f.wire.attach(shielded)
		case "nftables":
			err = f.wire.nftables(v6, l.bans)
		case "ipset + iptables":
			err = f.wire.ipset(v6, l.bans)
		case "xdp-filter":
			src.addrs, err = f.wire.xdpFilter(v6, l.banned)
			f.note = fmt.Sprintf("holds and is sent %d addresses", len(src.addrs))
		case "nothing":
			f.note = "up the stack, to no one"
		}
		if err != nil && f.need == "" {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		if err != nil {
			b.report.Notes = append(b.report.Notes, fmt.Sprintf("live: %s left out: %s", f.name, err))
			continue
		}
		b.log("%s: set up in %s", f.name, time.Since(start).Round(time.Millisecond))
		_, sum := newFrame(v6)
		err = f.wire.from.Do(func() (err error) {
			f.gen, err = w.load(v6, src, map[string]any{"cfg_ifindex": uint32(f.wire.fromIndex), "cfg_header_sum": sum})
			return err
		})
		if err != nil {
			return err
		}
		f.rate = make(map[string][]float64)
		up = append(up, f)
	}
	frame, _ := newFrame(v6)
	if err := b.liveRounds(ctx, up, frame, oneCPU); err != nil {
		return err
	}
	if runtime.NumCPU() > 1 {
		for _, f := range up {
			if err := f.wire.ownCPU((b.meter.cpu + 1) % runtime.NumCPU()); err != nil {
				return err
			}
		}
		if err := b.liveRounds(ctx, up, frame, ownCPUs); err != nil {
			return err
		}
	}
	return b.liveRows(up, v6, st)
}

// liveBound is the least share of the bare program's rate, with a CPU each.
const liveBound = 0.9

// How sender and receiver share the machine. On one CPU its time is what counts: no frame is lost,
// and the sender's own cost is in every figure. With a CPU each, what the receiver takes in counts.
const (
	oneCPU  = "sender and receiver on one CPU"
	ownCPUs = "a CPU each"
)

func (b *bench) liveRounds(ctx context.Context, up []*filter, frame []byte, how string) error {
	for round := range b.meter.rounds + 1 {
		for _, f := range up {
			if err := ctx.Err(); err != nil {
				return err
			}
			perSecond, err := f.send(frame, b.meter.slice, how)
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
			if round > 0 { // the first warms up
				f.rate[how] = append(f.rate[how], perSecond)
			}
		}
	}
	return nil
}

// send sends frames for about a time, and says how many a second the far end took in.
func (f *filter) send(template []byte, slice time.Duration, how string) (perSecond float64, err error) {
	frame := append([]byte(nil), template...)
	copy(frame, f.wire.toMAC)
	before, err := f.wire.received()
	if err != nil {
		return 0, err
	}
	var took time.Duration
	clock, batch := threadTime, 1<<14
	if how == ownCPUs {
		clock, batch = monotonic, 1<<19 // each call sleeps for a while in the kernel
	}
	err = f.wire.from.Do(func() error {
		start := clock()
		for took < slice {
			_, err := f.gen.Run(&ebpf.RunOptions{Data: frame, Repeat: uint32(batch), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES, BatchSize: 64})
			if err != nil {
				return fmt.Errorf("send frames: %w", err)
			}
			took = clock() - start
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	after, err := f.wire.received()
	if err != nil {
		return 0, err
	}
	return float64(after-before) / took.Seconds(), nil
}

func (b *bench) liveRows(up []*filter, v6 bool, st *stage) error {
	for _, how := range []string{oneCPU, ownCPUs} {
		rates := make(map[string][]float64)
		for _, f := range up {
			if len(f.rate[how]) == 0 {
				return nil
			}
			rates[f.name] = f.rate[how]
		}
		base := row{Part: "live", Case: how, Family: familyName(v6), Unit: "/s"}
		for _, f := range up {
			r := base
			r.Subject, r.Figure, r.Note = f.name, figureOf(rates[f.name]), f.note
			if f.name != bare {
				r = r.ratio(bare, rates[f.name], rates[bare])
			}
			if f.name == levee {
				shares, err := st.shares()
				if err != nil {
					return err
				}
				r.Note = shares
				if how == ownCPUs {
					r = r.atLeast(liveBound)
				}
			}
			b.report.Rows = append(b.report.Rows, r)
		}
		for _, f := range up {
			if f.name == "nftables" || f.name == "ipset + iptables" {
				r := base
				r.Subject, r.Figure = levee, figureOf(rates[levee])
				r = r.ratio(f.name, rates[levee], rates[f.name])
				if how == ownCPUs {
					r = r.atLeast(1.8)
				}
				b.report.Rows = append(b.report.Rows, r)
			}
		}
	}
	return nil
}

// attach attaches a program to the wire's far end; the link ends with the wire's namespace.
func (w *wire) attach(program *ebpf.Program) error {
	return w.to.Do(func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: w.toIndex, Flags: link.XDPDriverMode})
		if err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		w.links = append(w.links, l)
		return nil
	})
}

// disjoint leaves out prefixes that another covers: a set of intervals takes none twice.
func disjoint(prefixes []netip.Prefix) (out []netip.Prefix) {
	table := new(bart.Lite)
	for _, p := range prefixes {
		table.Insert(p)
	}
	for _, p := range prefixes {
		if p.Bits() > 0 {
			wider := netip.PrefixFrom(p.Addr(), p.Bits()-1).Masked()
			if _, covered := table.LookupPrefixLPM(wider); covered {
				continue
			}
		}
		out = append(out, p)
	}
	return out
}

func (w *wire) nftables(v6 bool, bans []netip.Prefix) error {
	kind, match := "ipv4_addr", "ip saddr"
	if v6 {
		kind, match = "ipv6_addr", "ip6 saddr"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "table netdev bench {\n set banned {\n type %s; flags interval;\n elements = {\n", kind)
	for _, p := range disjoint(bans) {
		fmt.Fprintf(&text, "%s,\n", p)
	}
	fmt.Fprintf(&text, "}\n }\n chain in {\n type filter hook ingress device %s priority 0;\n %s @banned counter drop\n }\n}\n", w.toName, match)
	return command(w.to, text.String(), "nft", "-f", "-")
}

func (w *wire) ipset(v6 bool, bans []netip.Prefix) error {
	family, iptables := "inet", "iptables"
	if v6 {
		family, iptables = "inet6", "ip6tables"
	}
	var text strings.Builder
	fmt.Fprintf(&text, "create banned hash:net family %s maxelem %d\n", family, len(bans))
	for _, p := range bans {
		fmt.Fprintf(&text, "add banned %s\n", p)
	}
	if err := command(w.to, text.String(), "ipset", "restore"); err != nil {
		return err
	}
	return command(w.to, "", iptables, "-t", "raw", "-A", "PREROUTING", "-m", "set", "--match-set", "banned", "src", "-j", "DROP")
}

// xdpFilter loads it with as many addresses as it holds, and says which. It knows no prefixes.
func (w *wire) xdpFilter(v6 bool, banned []netip.Addr) ([]netip.Addr, error) {
	if err := command(w.to, "", "xdp-filter", "load", w.toName, "-m", "native", "-f", "ipv4,ipv6", "-p", "allow"); err != nil {
		return nil, err
	}
	path := "/sys/fs/bpf/xdp-filter/filter_ipv4"
	if v6 {
		path = "/sys/fs/bpf/xdp-filter/filter_ipv6"
	}
	var addrs []netip.Addr
	err := w.to.Do(func() error {
		m, err := ebpf.LoadPinnedMap(path, nil)
		if err != nil {
			return fmt.Errorf("open xdp-filter's map: %w", err)
		}
		defer m.Close()
		const sourceFlag = 1 << 0
		cpus, err := ebpf.PossibleCPU()
		if err != nil {
			return err
		}
		value := make([]uint64, cpus)
		for i := range value {
			value[i] = sourceFlag
		}
		size := 1
		for size*2 <= min(int(m.MaxEntries()), len(banned)) {
			size *= 2
		}
		for _, addr := range banned[:size] {
			if err := m.Put(addr.AsSlice(), value); err != nil {
				return fmt.Errorf("add %s: %w", addr, err)
			}
		}
		addrs = banned[:size]
		return nil
	})
	return addrs, err
}
