package metrics

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/maps"
)

// The feed shows what the program really counted, and a daemon that starts again goes on from there.
func TestFeed(t *testing.T) {
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
	store, err := state.Open(state.Config{Path: filepath.Join(t.TempDir(), "state.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	banned := netip.MustParsePrefix("198.51.100.7/32")
	if _, err := store.Propose([]state.Proposal{{Prefix: banned, Origin: state.OriginOperator}}); err != nil {
		t.Fatal(err)
	}
	ban, ok := store.Effective(banned)
	if !ok {
		t.Fatal("not banned")
	}

	scrape := func(put bool) string {
		tables, err := maps.Open(set.Maps)
		if err != nil {
			t.Fatal(err)
		}
		defer tables.Close()
		if put {
			if err := errors.Join(
				tables.Bans.Put(maps.Ban{Prefix: ban.Prefix, List: ban.List, Expires: ban.Expires}),
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
		feed := &Feed{
			Tables: tables, State: store,
			Interfaces: func() ([]state.InterfaceView, error) {
				return []state.InterfaceView{{Name: "t0", Attached: true, Mode: "native"}}, nil
			},
			Reconciled: func() state.Reconciled { return state.Reconciled{} },
		}
		return text(t, NewCollector("test", tables.Counters, feed, nil))
	}
	for i, want := range []string{"50", "100"} {
		got := scrape(i == 0)
		for _, line := range []string{
			`levee_packets_total{action="drop",family="ipv4",interface="t0",reason="banned"} ` + want,
			`levee_packets_total{action="pass",family="ipv4",interface="t0",reason="clean"} ` + want,
			`levee_list_packets_total{action="drop",origin="operator"} ` + want,
			`levee_interface_attached{interface="t0",mode="native"} 1`,
			`levee_bans{family="ipv4",origin="operator"} 1`,
			`levee_sources_tracked 1`,
			`levee_table_entries{table="ipv4_bans"} 1`,
			`levee_table_capacity{table="sources"} 1024`,
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
