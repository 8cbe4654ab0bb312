package dashboard

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/scripts/internal/space"
)

var update = flag.Bool("update", false, "draw docs/dashboard.svg anew")

// quicker are the times in the alerts' queries, for a run of less than a minute, and the one bound that a
// sound daemon does not come to.
var quicker = strings.NewReplacer("[1h] offset 10m", "[10s] offset 12s", "[2m]", "[5s]", "[5m]", "[5s]", "[10m]", "[15s]", "[15m]", "[30s]", "[1d]", "[20s]",
	"offset 10m", "offset 15s", "offset 1d", "offset 20s", "< 86400", "< 20", "_timestamp_seconds > 120", "_timestamp_seconds > 3")

const (
	calm   = 24 * time.Second // what is usual
	attack = 14 * time.Second
	forged = 8 * time.Second // the attack with forged sources
)

// stage is a namespace with a daemon, a Prometheus that scrapes it, and somebody who sends.
type stage struct {
	*testing.T
	space *space.Space
	dir   string
	bin   string
	http  *http.Client // into the namespace
	send  int          // a packet socket on the other end of eth1
	to    unix.SockaddrLinklayer
}

func (s *stage) do(f func() error) {
	s.Helper()
	if err := s.space.Do(f); err != nil {
		s.Fatal(err)
	}
}

// start runs something in the namespace until the test ends.
func (s *stage) start(name string, args ...string) *exec.Cmd {
	s.Helper()
	var said bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	s.do(cmd.Start)
	s.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		timer := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
		_ = cmd.Wait()
		if s.Failed() {
			s.Logf("%s:\n%s", filepath.Base(name), said.String())
		}
	})
	return cmd
}

// levee runs a command, and returns its exit code.
func (s *stage) levee(input string, args ...string) int {
	s.Helper()
	cmd := exec.Command(s.bin, append([]string{"--socket", "/run/levee.sock"}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	s.do(func() error {
		err := cmd.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return nil
		}
		return err
	})
	s.Logf("levee %s: %.300s", strings.Join(args, " "), out.String())
	return cmd.ProcessState.ExitCode()
}

func (s *stage) get(address string, into any) error {
	answer, err := s.http.Get(address)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		return err
	}
	if answer.StatusCode != 200 {
		return fmt.Errorf("%s: %s", answer.Status, body)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(body, into)
}

func (s *stage) await(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.Fatalf("not within a minute: %s", what)
		}
	}
}

// udp is a frame from a source to the shielded interface.
func udp(src netip.Addr) []byte {
	b := make([]byte, 14+20+8+22)
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0})
	ip := b[14:]
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	a := src.As4()
	copy(ip[12:], a[:])
	copy(ip[16:], []byte{192, 0, 2, 1})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	sum = sum>>16 + sum&0xFFFF
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(ip[20:], 40000)
	binary.BigEndian.PutUint16(ip[22:], 9)
	binary.BigEndian.PutUint16(ip[24:], uint16(len(ip)-20))
	return b
}

// traffic is sent twenty times a second: so many packets a second of each kind.
type traffic struct{ clean, banned, monitored, heavy, spoofed atomic.Int64 }

func (s *stage) play(ctx context.Context, tr *traffic) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	n := 0
	for ctx.Err() == nil {
		<-tick.C
		for _, k := range []struct {
			rate *atomic.Int64
			src  func(i int) netip.Addr
		}{
			{&tr.clean, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i % 20)}) }},
			{&tr.banned, func(int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, 9}) }},
			{&tr.monitored, func(int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, 200}) }},
			{&tr.heavy, func(int) netip.Addr { return netip.AddrFrom4([4]byte{100, 64, 0, 1}) }},
			{&tr.spoofed, func(i int) netip.Addr { return netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}) }},
		} {
			for range k.rate.Load() / 20 {
				n++
				if err := unix.Sendto(s.send, udp(k.src(n)), 0, &s.to); err != nil && !errors.Is(err, unix.ENOBUFS) {
					s.Errorf("send: %v", err)
					return
				}
			}
		}
	}
}

// tamper takes a ban out of the kernel's table, as nobody should.
func (s *stage) tamper() {
	s.do(func() error {
		found, err := filepath.Glob("/sys/fs/bpf/levee/*/maps/" + bpf.LeveeMapBan4Table)
		if err != nil || len(found) != 1 {
			return fmt.Errorf("tables %v (%w)", found, err)
		}
		m, err := ebpf.LoadPinnedMap(found[0], nil)
		if err != nil {
			return err
		}
		defer m.Close()
		for i := range m.MaxEntries() {
			var b bpf.Ban4Bucket
			if err := m.Lookup(i, &b); err != nil {
				return err
			}
			if b != (bpf.Ban4Bucket{}) {
				return m.Put(i, bpf.Ban4Bucket{})
			}
		}
		return errors.New("no ban is in the table")
	})
}

func newStage(t *testing.T) *stage {
	t.Helper()
	s := &stage{T: t, dir: t.TempDir()}
	s.bin = filepath.Join(s.dir, "levee")
	build := exec.Command("go", "build", "-o", s.bin, "./cmd/levee")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build levee: %v\n%s", err, out)
	}
	var err error
	if s.space, err = space.New("dashboard", 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.space.Close)
	s.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
			return s.space.Dial(network, address, 5*time.Second)
		}}}
	s.do(func() error {
		attrs := netlink.LinkAttrs{Name: "eth1", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}); err != nil {
			return err
		}
		for _, name := range []string{"lo", "eth1", "peer"} {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			if err := netlink.LinkSetUp(l); err != nil {
				return err
			}
			s.to = unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Halen: 6} // the last is the peer
		}
		s.send, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	t.Cleanup(func() { unix.Close(s.send) })
	return s
}

func (s *stage) write(name, text string) string {
	s.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.Fatal(err)
	}
	return path
}

// TestQueries makes a run in which everything happens that alerts are about, has a Prometheus scrape it, and
// puts every query of the dashboard and of the alerts to it. One that gives nothing fails the test.
func TestQueries(t *testing.T) {
	if os.Getenv("LEVEE_THIRDPARTY") == "" {
		t.Skip("a run of a minute with a real Prometheus: `make test-dashboard`")
	}
	thirdParty(t, "prometheus")
	panels, rules := readPanels(t), readRules(t)
	s := newStage(t)
	settings := `
interfaces: [eth1, gone0]
source_idle: 1h
limits:
  default: {packets: {rate: 200/s, burst: 200}}
tables: {ipv4_bans: 1024, ipv6_bans: 1024, sources: 1024}
api: {socket: /run/levee.sock}
lock: /run/lock
state: {path: ` + s.dir + `/state.db}
notify: {url: "http://127.0.0.1:9/", start: 500/s, after: 1s, end: 100/s, quiet: 2s, attempts: 1}
`
	config := s.write("levee.yaml", settings)
	began := time.Now()
	daemon := s.start(s.bin, "run", "--config", config)
	s.await("the daemon is ready", func() bool { return s.get("http://127.0.0.1:9464/metrics", nil) == nil })

	// Bans of several origins, enough to fill the smallest table by more than the alert says.
	for _, args := range [][]string{
		{"ban", "203.0.113.9", "--reason", "test"}, {"ban", "2001:db8::/64", "--origin", "api:gateway"}, {"ban", "203.0.113.200", "--monitor"},
	} {
		if code := s.levee("", args...); code != 0 {
			t.Fatalf("levee %s: exit code %d", strings.Join(args, " "), code)
		}
	}
	var many strings.Builder
	for i := range 2600 {
		fmt.Fprintf(&many, "10.0.%d.%d\n", i/250, i%250)
	}
	if code := s.levee(many.String(), "ban", "-", "--origin", "feed:test"); code != 0 && code != 5 {
		t.Fatalf("the feed: exit code %d", code)
	}
	s.start("prometheus", "--config.file", s.write("prometheus.yml", `
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: levee
    static_configs: [{targets: ["127.0.0.1:9464"], labels: {instance: edge-1}}]
`), "--storage.tsdb.path", filepath.Join(s.dir, "data"), "--web.listen-address", "127.0.0.1:9090", "--log.level", "warn")
	s.await("Prometheus is ready", func() bool { return s.get("http://127.0.0.1:9090/-/ready", nil) == nil })

	ctx, stop := context.WithCancel(t.Context())
	var tr traffic
	played := make(chan struct{})
	go func() { defer close(played); s.play(ctx, &tr) }()
	defer func() { stop(); <-played }()
	refuse := func() {
		for range 20 {
			s.levee("", "ban", "127.0.0.1", "--origin", "api:gateway")
			r, err := http.NewRequest(http.MethodGet, "http://levee/v1/status", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Origin", "https://elsewhere.example.net")
			c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
				return s.space.Dial("unix", "/run/levee.sock", 5*time.Second)
			}}}
			answer, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusForbidden {
				t.Fatalf("another site's page: %s", answer.Status)
			}
		}
	}
	tr.clean.Store(1000)
	tr.banned.Store(40)
	tr.monitored.Store(20)
	s.levee("", "ban", "127.0.0.1", "--origin", "api:gateway") // so that there is a counter to rise
	refuse()
	time.Sleep(calm)
	tr.clean.Store(60)
	tr.banned.Store(2000)
	tr.heavy.Store(1000)
	refuse()
	s.tamper()
	time.Sleep(attack)
	tr.spoofed.Store(2000) // what passes of it is clean as far as anybody can tell
	time.Sleep(forged)
	height := time.Now() // of the attack: the picture's end
	for _, k := range []*atomic.Int64{&tr.banned, &tr.heavy, &tr.spoofed} {
		k.Store(0)
	}
	s.write("levee.yaml", settings+"mode: monitor\n")
	if code := s.levee("", "config", "reload"); code != 0 {
		t.Fatalf("reload: exit code %d", code)
	}
	s.await("Prometheus has seen monitor mode", func() bool { return s.fires("levee_monitor_mode == 1", began) })
	s.levee("", "panic", "on")
	s.await("Prometheus has seen the panic", func() bool { return s.fires("levee_panic == 1", began) })
	s.await("the drift is found", func() bool { return s.fires("levee_reconcile_drift > 0", began) })
	if err := daemon.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.await("Prometheus misses the daemon", func() bool { return s.fires(`up == 0`, began) })

	for _, r := range rules {
		if !s.fires(quicker.Replace(r.Expr), began) {
			t.Errorf("alert %s: its query gave nothing in the whole run", r.Alert)
		}
	}
	drawn := make(map[int][]Series)
	for _, p := range panels {
		for _, target := range p.Targets {
			got, err := s.query(Query(target.Expr, "5s"), target, began, time.Now())
			if err != nil || len(got) == 0 {
				t.Errorf("panel %q: %s gave nothing: %v", p.Title, target.Expr, err)
			}
			if got, err = s.query(Query(target.Expr, "5s"), target, began.Add(10*time.Second), height); err != nil {
				t.Error(err)
			}
			drawn[p.ID] = append(drawn[p.ID], got...)
		}
	}
	picture := SVG(panels, drawn)
	if *update && !t.Failed() {
		if err := os.WriteFile(root+"/docs/dashboard.svg", picture, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// fires tells whether a query gave something at any time of the run.
func (s *stage) fires(expr string, began time.Time) bool {
	s.Helper()
	got, err := s.query(expr, Target{}, began, time.Now())
	if err != nil {
		s.Errorf("%s: %v", expr, err)
	}
	return len(got) > 0
}

// query asks for a part of a run, a point a second, and returns the series that hold a number somewhere.
func (s *stage) query(expr string, target Target, from, to time.Time) ([]Series, error) {
	start, end := from.Unix(), to.Unix()
	v := url.Values{"query": {expr}, "start": {strconv.FormatInt(start, 10)}, "end": {strconv.FormatInt(end, 10)}, "step": {"1"}}
	var answer struct {
		Data struct {
			Result []struct {
				Metric map[string]string `json:"metric"`
				Values [][2]any          `json:"values"`
			} `json:"result"`
		} `json:"data"`
	}
	if err := s.get("http://127.0.0.1:9090/api/v1/query_range?"+v.Encode(), &answer); err != nil {
		return nil, err
	}
	var list []Series
	for _, r := range answer.Data.Result {
		line := Series{Name: target.Name(r.Metric), Values: make([]float64, end-start+1)}
		for i := range line.Values {
			line.Values[i] = math.NaN()
		}
		there := false
		for _, point := range r.Values {
			at, _ := point[0].(float64)
			text, _ := point[1].(string)
			value, err := strconv.ParseFloat(text, 64)
			if err != nil {
				return nil, err
			}
			line.Values[int64(at)-start] = value
			there = there || !math.IsNaN(value) && !math.IsInf(value, 0)
		}
		if there {
			list = append(list, line)
		}
	}
	return list, nil
}
