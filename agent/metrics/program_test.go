package metrics

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// A scrape shows what the program really counted, and a daemon that starts again goes on from there.
func TestProgram(t *testing.T) {
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set: this test loads a program")
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: this test loads a program")
	}
	spec, err := bpf.LoadLevee()
	if err != nil {
		t.Fatal(err)
	}
	sizes := bpf.Sizes{Ban4Entries: 1 << 12, Ban6Entries: 1 << 12, Sources: 1 << 10, Allows: 1 << 8}
	if err := errors.Join(sizes.Apply(spec), bpf.DefaultFeatures().Apply(spec), bpf.Specialise(spec, [2]uint64{}, 0)); err != nil {
		t.Fatal(err)
	}
	set, err := ebpf.NewCollection(spec)
	if err != nil {
		t.Fatalf("%v; LEVEE_UNPRIVILEGED=1 skips what takes BPF", err)
	}
	t.Cleanup(set.Close)
	if err := errors.Join(
		set.Maps[bpf.LeveeMapMeta].Put(uint32(0), bpf.Meta{Schema: bpf.Schema}),
		set.Maps[bpf.LeveeMapInterfaces].Put(uint32(0), bpf.Interface{Ifindex: 7, Mode: 1, Name: [16]int8{'t', '0'}}),
	); err != nil {
		t.Fatal(err)
	}
	scrape := func(put bool) string {
		tables, err := maps.Open(set.Maps)
		if err != nil {
			t.Fatal(err)
		}
		defer tables.Close()
		if put {
			if err := errors.Join(
				tables.Bans.Put(maps.Ban{Prefix: netip.MustParsePrefix("198.51.100.7/32"), List: 1, Expires: bpf.Forever}),
				tables.Limits.Put(0, maps.Limit{Group4: 32, Group6: 64, Aggregate4: 24, Aggregate6: 48}),
			); err != nil {
				t.Fatal(err)
			}
		}
		for _, source := range []string{"198.51.100.7", "198.51.100.8"} {
			// One by one: a run of many that a signal interrupts begins anew, and counts more.
			for range 50 {
				if _, err := set.Programs[bpf.LeveeProgLevee].Run(&ebpf.RunOptions{Data: datagram(source), Repeat: 1}); err != nil {
					t.Fatal(err)
				}
			}
		}
		daemon := &fake{snapshot: Snapshot{Slots: tables.Interfaces.List()}, origins: map[uint16]state.Origin{1: state.OriginOperator}}
		return text(t, NewCollector("test", tables.Counters, daemon, nil))
	}
	for i, want := range []string{"50", "100"} {
		got := scrape(i == 0)
		for _, line := range []string{
			`levee_packets_total{action="drop",family="ipv4",interface="t0",reason="banned"} ` + want,
			`levee_packets_total{action="pass",family="ipv4",interface="t0",reason="clean"} ` + want,
			`levee_list_packets_total{action="drop",origin="operator"} ` + want,
			`levee_scrape_errors_total{part="state"} 0`,
		} {
			if !strings.Contains(got, line+"\n") {
				t.Errorf("scrape %d lacks %s", i, line)
			}
		}
		if t.Failed() {
			t.Fatal(got)
		}
	}
}

// datagram is a frame with an empty UDP datagram.
func datagram(source string) []byte {
	f := make([]byte, 60)
	binary.BigEndian.PutUint16(f[12:], 0x0800)
	ip := f[14:34]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], 28)
	from := netip.MustParseAddr(source).As4()
	copy(ip[12:], from[:])
	copy(ip[16:], []byte{192, 0, 2, 1})
	binary.BigEndian.PutUint16(f[34:], 4000)
	binary.BigEndian.PutUint16(f[36:], 53)
	binary.BigEndian.PutUint16(f[38:], 8)
	return f
}
