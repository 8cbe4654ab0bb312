package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/config"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// daemonMain is the daemon in a process of its own, on the real kernel: the test's binary runs again.
func daemonMain() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := config.Load(os.Getenv("LEVEE_TEST_DAEMON"))
	o := Options{Config: c, File: os.Getenv("LEVEE_TEST_DAEMON"), Version: "test"}
	if path := os.Getenv("LEVEE_TEST_CLOCK"); path != "" {
		o.Clock = steppedClock{path: path}
	}
	if err == nil {
		err = Run(ctx, o)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// lab is a host with a daemon and a peer, each in a network namespace of its own, and a veth pair
// between them.
type lab struct {
	*testing.T
	*client.Client
	host, peer string // names of the namespaces
	dir, root  string
	daemon     *exec.Cmd
	log        *buffer
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set")
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if err := loader.Probe("").Err(); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("levee-agent-%d", os.Getpid())
	l := &lab{T: t, host: name + "-h", peer: name + "-p", dir: t.TempDir(), root: "/sys/fs/bpf/" + name, log: &buffer{}}
	t.Cleanup(l.clean)
	l.namespaces()
	l.write("")
	l.Client = client.New(client.Config{Socket: filepath.Join(l.dir, "s")})
	return l
}

func (l *lab) write(more string) {
	l.Helper()
	text := fmt.Sprintf(`api: {socket: %[1]s/s, group: ""}
state: {path: %[1]s/state.db}
lock: %[1]s/lock
bpffs: %[2]s
metrics: {listen: "off"}
tables: {ipv4_bans: 4k, ipv6_bans: 4k, sources: 4k, allows: 100}
%[3]s`, l.dir, l.root, more)
	if err := os.WriteFile(filepath.Join(l.dir, "levee.yaml"), []byte(text), 0o600); err != nil {
		l.Fatal(err)
	}
}

func (l *lab) clean() {
	l.Close()
	if l.daemon != nil {
		l.kill()
	}
	if _, err := loader.Remove(l.root); err != nil {
		l.Error(err)
	}
	for _, name := range []string{l.host, l.peer} {
		if err := netns.DeleteNamed(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.Error(err)
		}
	}
	if l.Failed() {
		l.Logf("the daemon's log:\n%s", l.log)
	}
}

// namespaces makes both, connected: 192.0.2.1 and 2001:db8::1 are the host, .2 and ::2 the peer.
func (l *lab) namespaces() {
	l.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		done <- func() error {
			for _, name := range []string{l.host, l.peer} {
				h, err := netns.NewNamed(name)
				if err != nil {
					return err
				}
				defer h.Close()
			}
			host, err := netns.GetFromName(l.host)
			if err != nil {
				return err
			}
			defer host.Close()
			pair := netlink.NewVeth(netlink.LinkAttrs{Name: "shielded"}) // made in the host's by PeerNamespace's absence
			pair.PeerName = "outside"
			if err := netlink.LinkAdd(pair); err != nil { // this thread is in the peer's namespace now
				return err
			}
			link, err := netlink.LinkByName("shielded")
			if err != nil {
				return err
			}
			if err := netlink.LinkSetNsFd(link, int(host)); err != nil {
				return err
			}
			if err := addresses("outside", 2); err != nil {
				return err
			}
			if err := netns.Set(host); err != nil {
				return err
			}
			return addresses("shielded", 1)
		}()
	}()
	if err := <-done; err != nil {
		l.Fatal(err)
	}
}

func addresses(name string, n byte) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range []string{fmt.Sprintf("192.0.2.%d/24", n), fmt.Sprintf("2001:db8::%d/64", n)} {
		addr, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		addr.Flags = syscall.IFA_F_NODAD
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// in runs a function in a namespace.
func (l *lab) in(name string, f func() error) {
	l.Helper()
	if err := inside(name, f); err != nil {
		l.Fatal(err)
	}
}

// inside runs a function in a namespace, and returns its error.
func inside(name string, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		h, err := netns.GetFromName(name)
		if err == nil {
			err = netns.Set(h)
			h.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func (l *lab) start() {
	l.Helper()
	self, err := os.Executable()
	if err != nil {
		l.Fatal(err)
	}
	l.daemon = exec.Command("nsenter", "--net=/run/netns/"+l.host, self)
	l.daemon.Env = append(os.Environ(), "LEVEE_TEST_DAEMON="+filepath.Join(l.dir, "levee.yaml"))
	l.daemon.Stdout, l.daemon.Stderr = l.log, l.log
	if err := l.daemon.Start(); err != nil {
		l.Fatal(err)
	}
	l.await("the daemon gets ready", func() bool {
		o, err := l.Status(l.Context(), 0)
		return err == nil && o.Health.State != "starting"
	})
}

// kill is kill -9.
func (l *lab) kill() {
	_ = l.daemon.Process.Kill()
	_ = l.daemon.Wait()
	l.daemon = nil
}

func (l *lab) terminate() {
	l.Helper()
	if err := l.daemon.Process.Signal(syscall.SIGTERM); err != nil {
		l.Fatal(err)
	}
	if err := l.daemon.Wait(); err != nil {
		l.Errorf("the daemon did not end well: %v", err)
	}
	l.daemon = nil
}

func (l *lab) await(what string, ok func() bool) {
	l.Helper()
	for until := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(until) {
			l.Fatalf("in vain: %s", what)
		}
	}
}

// wire carries datagrams from the peer to the host, over one family.
type wire struct {
	*lab
	source   netip.Addr
	receiver net.PacketConn
	sender   net.Conn
	sent     int
}

func (l *lab) wire(family string) *wire {
	l.Helper()
	w := &wire{lab: l, source: netip.MustParseAddr("192.0.2.2")}
	host, local := "192.0.2.1", "192.0.2.2:0"
	if family == "ipv6" {
		w.source, host, local = netip.MustParseAddr("2001:db8::2"), "2001:db8::1", "[2001:db8::2]:0"
	}
	l.in(l.host, func() (err error) {
		w.receiver, err = net.ListenPacket("udp", net.JoinHostPort(host, "0"))
		return err
	})
	l.in(l.peer, func() error {
		from, err := net.ResolveUDPAddr("udp", local)
		if err != nil {
			return err
		}
		to := w.receiver.LocalAddr().(*net.UDPAddr)
		w.sender, err = net.DialUDP("udp", from, to)
		return err
	})
	l.Cleanup(func() { w.receiver.Close(); w.sender.Close() })
	return w
}

// send sends one datagram.
func (w *wire) send() {
	w.Helper()
	w.sent++
	if _, err := w.sender.Write([]byte(strconv.Itoa(w.sent))); err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
		w.Fatal(err)
	}
}

// next returns the next datagram that comes out, if one does before a time.
func (w *wire) next(until time.Time) (string, bool) {
	w.Helper()
	if err := w.receiver.SetReadDeadline(until); err != nil {
		w.Fatal(err)
	}
	var b [100]byte
	n, _, err := w.receiver.ReadFrom(b[:])
	return string(b[:n]), err == nil
}

// arrives tells whether the last datagram that was sent comes out within a time.
func (w *wire) arrives(patience time.Duration) bool {
	w.Helper()
	for until := time.Now().Add(patience); ; {
		text, ok := w.next(until)
		if !ok || text == strconv.Itoa(w.sent) {
			return ok
		}
	}
}

// passes sends one datagram, and tells whether it comes out. One that was dropped is not waited for
// long: who must be sure asks the counters, and who expects it to come takes mustPass.
func (w *wire) passes() bool {
	w.Helper()
	w.send()
	return w.arrives(20 * time.Millisecond)
}

// mustPass sends one datagram that has to come out, however busy the machine is.
func (w *wire) mustPass(when string) {
	w.Helper()
	w.send()
	if !w.arrives(5 * time.Second) {
		w.Errorf("%s: its packets are dropped", when)
	}
}

// blocked sends datagrams none of which may come out.
func (w *wire) blocked(when string) {
	w.Helper()
	for range 10 {
		if w.passes() {
			w.Fatalf("%s: a packet of a banned source came through", when)
		}
	}
}

func (w *wire) open(when string) {
	w.Helper()
	w.await(when+": packets come through", w.passes)
}

// dropped is how many packets were dropped for a reason, as the API tells it.
func (l *lab) dropped(reason string) (n uint64) {
	l.Helper()
	s, err := l.Stats(l.Context())
	if err != nil {
		l.Fatal(err)
	}
	for _, c := range s.Counters {
		if c.Reason == reason && c.Action == state.ActionDrop {
			n += c.Packets
		}
	}
	return n
}

// The life of a shield: bans hold while the daemon is killed, restarted and stopped, they end on
// time without it, and detaching takes everything down.
func TestLife(t *testing.T) {
	l := newLab(t)
	l.start()
	ctx := t.Context()
	v, err := l.Attach(ctx, state.AttachRequest{Name: "shielded"})
	if err != nil || v.Mode != "native" {
		t.Fatalf("%+v, %v", v, err)
	}
	for _, family := range []string{"ipv4", "ipv6"} {
		t.Run(family, func(t *testing.T) {
			outer := l.T
			l.T = t
			defer func() { l.T = outer }()
			w := l.wire(family)
			w.open("before")
			before := l.dropped("banned")
			ban := func(d string) state.BanResult {
				t.Helper()
				r, err := l.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: w.source.String(), Origin: "operator", For: d}}})
				if err != nil || r.Done != 1 {
					t.Fatalf("%+v, %v", r, err)
				}
				return r.Bans[0]
			}
			answer := ban("5s") // long enough for a busy machine to kill the daemon meanwhile
			w.blocked("right after the answer")
			if n := l.dropped("banned") - before; n != 10 {
				t.Errorf("%d packets were counted as banned, want 10", n)
			}
			l.kill()
			w.blocked("with the daemon killed")
			w.open("with the daemon dead, after its time")
			if early := time.Until(answer.Expires); early > 0 {
				t.Errorf("it ended %s too early", early)
			}

			l.start()
			if !strings.Contains(l.log.String(), "adopted the shield that was there") {
				t.Error("the shield was not adopted")
			}
			w.open("after the restart")
			ban("")
			l.kill()
			l.start()
			w.blocked("after a kill and a restart")
			l.terminate()
			w.blocked("after a stop")
			l.start()
			if r, err := l.Unban(ctx, state.UnbanRequest{Prefixes: []string{w.source.String()}, Origin: "operator"}); err != nil || r.Done != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			w.mustPass("unbanned, after the answer")
			ban("1h")
			if err := l.SetPanicOffline(true); err != nil {
				t.Fatal(err)
			}
			w.mustPass("the panic switch is on")
			if p, err := l.SetPanic(ctx, false); err != nil || p.On {
				t.Fatal(err)
			}
			w.blocked("after the panic")
		})
	}
	w := l.wire("ipv4")
	if err := l.Detach(ctx, "shielded"); err != nil {
		t.Fatal(err)
	}
	w.open("detached")
	l.terminate()
	l.start()
	if list, err := l.Interfaces(ctx); err != nil || len(list.Interfaces) != 0 {
		t.Errorf("what was detached came back: %+v, %v", list, err)
	}
	w.open("after a restart")
}

// SetPanicOffline throws the switch as the command does when no daemon answers.
func (l *lab) SetPanicOffline(on bool) error { return loader.SetPanic(l.root, on) }

// The configuration attaches, limits hold a source to its rate, the allow list overrules a ban, and
// what a limit drops is told with its source.
func TestShielding(t *testing.T) {
	l := newLab(t)
	l.write("interfaces: [shielded]\nlimits: {default: {udp: {rate: 1/m, burst: 5}, penalty: 0s}}\nallow: [192.0.2.3]\n")
	l.start()
	ctx := t.Context()
	w := l.wire("ipv4")
	passed := 0
	for range 50 {
		w.send()
	}
	l.await("all 50 have passed or are counted as dropped", func() bool {
		for ok := true; ok; {
			if _, ok = w.next(time.Now().Add(time.Millisecond)); ok {
				passed++
			}
		}
		return uint64(passed)+l.dropped("limit_udp") == 50
	})
	if passed != 5 && passed != 6 {
		t.Errorf("%d of 50 passed, at most 5 may at once", passed)
	}
	o, err := l.Status(ctx, 0)
	if err != nil || len(o.Limits) != 1 || len(o.Limits[0].Sources) != 1 || o.Limits[0].Sources[0].Prefix.Addr() != w.source || o.Limits[0].Exceeded[0].Threshold != "udp" {
		t.Errorf("%+v, %v", o.Limits, err)
	}
	list, err := l.Sources(ctx, state.ByDropped, 1, 0)
	if err != nil || len(list.Sources) != 1 || list.Sources[0].Dropped != uint64(50-passed) {
		t.Errorf("%+v, %v", list, err)
	}
	l.await("a sampled event is told", func() bool {
		c, err := l.Check(ctx, w.source)
		return err == nil && len(c.Events) > 0 && c.Events[0].Reason == "limit_udp" && c.Events[0].Limit == "default" && c.Events[0].Interface == "shielded"
	})
	if _, err := l.SetLimit(ctx, "default", state.LimitSpec{}); err != nil {
		t.Fatal(err)
	}
	w.mustPass("the limit is lifted")
	wide := state.BanRequest{Bans: []state.BanItem{{Prefix: "192.0.2.0/24"}}}
	if r, err := l.Ban(ctx, wide); err != nil || r.Refused != 1 || r.Bans[0].Error.Code != state.CodeProtected ||
		!strings.Contains(r.Bans[0].Error.Detail, "contains 192.0.2.1, which is protected: it is this host's own address (shielded)") {
		t.Fatalf("%+v, %v", r, err)
	}
	w.mustPass("a ban that contains this host's own address is refused")
	wide.Force = true
	if r, err := l.Ban(ctx, wide); err != nil || r.Done != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	w.blocked("its prefix is banned")
	if a, err := l.Allow(ctx, state.AllowRequest{Allow: []state.AllowItem{{Prefix: "192.0.2.2"}}}); err != nil || a.Done != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	w.mustPass("it is allowed")
}
