package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// floodOrder is all that a flood needs to know. It goes to a process of its own.
type floodOrder struct {
	Interface string        // where its frames leave; must be one end of a veth pair
	Kind      kind          // what its packets are
	Version   int           // 4 or 6
	Sources   int           // how many addresses take part; 0: a random one for each packet
	Seed      uint64        // which addresses: see botnet
	Rate      int           // packets per second
	Duration  time.Duration // it ends by itself
	From, To  string        // MAC addresses
	NotIn     uint64        // the network namespace (by inode) that must not be flooded: the host's
}

// floodReport is what a flood says when it has ended.
type floodReport struct {
	Sent    uint64  `json:"sent"`
	Seconds float64 `json:"seconds"`
}

var (
	errNotVeth = errors.New("is not a veth interface, and a flood goes nowhere else")
	errHostNet = errors.New("this is the host's own network, and a flood stays in the lab's")
)

// maxRate bounds what a slip of the hand can do to a machine, and maxFlood how long.
const (
	maxRate  = 5_000_000
	maxFlood = 30 * time.Second
)

// flood sends frames until its time is over or the context ends, and calls started when the first has left. The kernel
// is still at it when it returns, but sends nothing more, and stops when the process ends: so each
// flood has a process of its own.
func flood(ctx context.Context, order floodOrder, started func()) (floodReport, error) {
	if order.Rate < 1 || order.Rate > maxRate {
		return floodReport{}, fmt.Errorf("rate %d/s: must be 1 to %d", order.Rate, maxRate)
	}
	if order.Duration <= 0 || order.Duration > maxFlood {
		return floodReport{}, fmt.Errorf("duration %s: must be at most %s", order.Duration, maxFlood)
	}
	index, err := floodable(order.Interface, order.NotIn)
	if err != nil {
		return floodReport{}, err
	}
	objects, pattern, err := loadGenerator(order, index)
	if err != nil {
		return floodReport{}, err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := objects.Flood.Run(&ebpf.RunOptions{
			Data:   pattern,
			Repeat: math.MaxInt32,
			Flags:  unix.BPF_F_TEST_XDP_LIVE_FRAMES,
		})
		ended <- err
	}()

	start := monotonic()
	stop := start + order.Duration
	if err := errors.Join(objects.Start.Set(uint64(start)), objects.Stop.Set(uint64(stop))); err != nil {
		return floodReport{}, err
	}
	var report floodReport
	for ctx.Err() == nil && monotonic() < stop {
		select {
		case <-ctx.Done():
		case err := <-ended:
			return report, fmt.Errorf("send frames: ended too early: %w", err)
		case <-time.After(time.Millisecond):
		}
		before := report.Sent
		if err := objects.Sent.Get(&report.Sent); err != nil {
			return report, err
		}
		if before == 0 && report.Sent > 0 {
			start = monotonic()
			started()
		}
	}
	if err := objects.Stop.Set(uint64(1)); err != nil {
		return report, err
	}
	report.Seconds = (monotonic() - start).Seconds()
	if err := objects.Sent.Get(&report.Sent); err != nil {
		return report, err
	}
	return report, nil
}

// floodable says the index of an interface that may be flooded: a veth in a namespace that is not
// the host's.
func floodable(name string, notIn uint64) (int, error) {
	here, err := space.Netns()
	if err != nil {
		return 0, err
	}
	if notIn == 0 || here == notIn {
		return 0, fmt.Errorf("flood %s: %w", name, errHostNet)
	}
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("flood %s: %w", name, err)
	}
	if nic.Type() != "veth" {
		return 0, fmt.Errorf("flood %s: it is of type %s: %w", name, nic.Type(), errNotVeth)
	}
	return nic.Attrs().Index, nil
}

// loadGenerator loads the program that makes a flood's frames out of a pattern.
func loadGenerator(order floodOrder, index int) (*floodObjects, []byte, error) {
	from, err := net.ParseMAC(order.From)
	if err != nil {
		return nil, nil, err
	}
	to, err := net.ParseMAC(order.To)
	if err != nil {
		return nil, nil, err
	}
	f, err := newFrame(order.Kind, order.Version, from, to)
	if err != nil {
		return nil, nil, err
	}
	spec, err := loadFlood()
	if err != nil {
		return nil, nil, err
	}
	var vars floodVariableSpecs
	if err := spec.Assign(&vars); err != nil {
		return nil, nil, err
	}
	var start [96]byte
	copy(start[:], f.bytes)
	err = errors.Join(
		vars.CfgPattern.Set(start),
		vars.CfgIfindex.Set(uint32(index)),
		vars.CfgLength.Set(uint32(len(f.bytes))),
		vars.CfgIpv6.Set(order.Version == 6),
		vars.CfgSources.Set(uint32(order.Sources)),
		vars.CfgPortOffset.Set(uint32(f.portOffset)),
		vars.CfgPartOffset.Set(uint32(f.partOffset)),
		vars.CfgPart.Set(f.parts),
		vars.CfgCheckOffset.Set(uint32(f.checkOffset)),
		vars.CfgPseudo.Set(f.pseudo),
		vars.CfgHeaderSum.Set(f.headerSum),
		vars.CfgTransportSum.Set(f.transportSum),
		vars.CfgGap.Set(uint64(time.Second)/uint64(order.Rate)),
	)
	if err != nil {
		return nil, nil, err
	}
	var objects floodObjects
	if err := spec.LoadAndAssign(&objects, nil); err != nil {
		return nil, nil, fmt.Errorf("load the flood: %w", err)
	}
	if err := fillSources(objects.Sources, botnet(order.Seed, order.Sources, order.Version)); err != nil {
		return nil, nil, errors.Join(err, objects.Close())
	}
	return &objects, f.bytes, nil
}

func fillSources(m *ebpf.Map, sources []netip.Addr) error {
	if len(sources) > int(m.MaxEntries()) {
		return fmt.Errorf("%d sources: at most %d", len(sources), m.MaxEntries())
	}
	if len(sources) == 0 {
		return nil
	}
	keys, values := make([]uint32, len(sources)), make([][16]byte, len(sources))
	for i, addr := range sources {
		keys[i] = uint32(i)
		copy(values[i][:], addr.AsSlice())
	}
	if _, err := m.BatchUpdate(keys, values, nil); err != nil {
		return fmt.Errorf("store the sources: %w", err)
	}
	return nil
}

// botnet gives so many different addresses of ordinary hosts. The same seed gives the same ones.
func botnet(seed uint64, count, version int) []netip.Addr {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	random := rand.New(rand.NewChaCha8(key))
	addrs := make([]netip.Addr, 0, count)
	seen := make(map[netip.Addr]bool, count)
	for len(addrs) < count {
		addr := randomAddr(random, version)
		if group, _ := addr.Prefix(min(addr.BitLen(), 64)); addr.IsGlobalUnicast() && !addr.IsPrivate() && !seen[group.Addr()] {
			seen[group.Addr()] = true
			addrs = append(addrs, addr)
		}
	}
	return addrs
}

func randomAddr(random *rand.Rand, version int) netip.Addr {
	if version == 4 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], random.Uint32())
		b[0] = 1 + b[0]%223
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], random.Uint64())
	binary.BigEndian.PutUint64(b[8:], random.Uint64())
	b[0], b[1] = 0x24+(b[0]&3)*2, b[1]&0x0f // 2400::/12, 2600::/12, 2800::/12, 2a00::/12
	return netip.AddrFrom16(b)
}
