package agent

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/httpguard"
	"github.com/levee-xdp/levee/agent/state"
)

// stuffers try passwords, each from an address of its own; the last one over IPv6.
const stuffers = 30

// stuffing is an API server behind the shield, with those who use it and those who try passwords.
type stuffing struct {
	*lab
	guard  *httpguard.Guard
	four   string // where it listens
	six    string
	banned chan httpguard.Event
}

func newStuffing(t *testing.T) *stuffing {
	t.Helper()
	s := &stuffing{lab: newLab(t), banned: make(chan httpguard.Event, 100)}
	s.addresses()
	s.start()
	if _, err := s.Attach(t.Context(), state.AttachRequest{Name: "shielded"}); err != nil {
		t.Fatal(err)
	}
	daemon := client.New(client.Config{Socket: s.dir + "/s", Agent: "shop"})
	t.Cleanup(daemon.Close)
	guard, err := httpguard.New(httpguard.Config{
		Limits: []httpguard.Limit{
			{Name: "address", Requests: 200, Per: time.Second},
			{Name: "user", Key: func(r *http.Request) string { return r.Header.Get("User") }, Requests: 200, Per: time.Second},
		},
		Failed: func(r *http.Request, status int) bool {
			return r.URL.Path == "/login" && status == http.StatusUnauthorized
		},
		Failures:   httpguard.Threshold{Count: 10, Per: time.Minute},
		Escalation: httpguard.Escalation{Daemon: daemon, Origin: "api:shop"},
		Observe: func(e httpguard.Event) {
			if e.Kind == httpguard.Banned || e.Kind == httpguard.Refused || e.Kind == httpguard.GivenUp {
				s.banned <- e
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.guard = guard
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Password") != "right" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	mux.HandleFunc("GET /goods", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "[]") })
	server := &http.Server{Handler: guard.Handler(mux), ReadHeaderTimeout: time.Minute}
	var served sync.WaitGroup
	for _, at := range []string{"192.0.2.1:0", "[2001:db8::1]:0"} {
		var listener net.Listener
		s.in(s.host, func() (err error) {
			listener, err = net.Listen("tcp", at)
			return err
		})
		served.Go(func() { _ = server.Serve(listener) })
		if url := "http://" + listener.Addr().String(); strings.Contains(at, "[") {
			s.six = url
		} else {
			s.four = url
		}
	}
	t.Cleanup(func() {
		_ = server.Close()
		served.Wait()
		if err := guard.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// addresses gives the peer one for each stuffer.
func (s *stuffing) addresses() {
	s.Helper()
	s.in(s.peer, func() error {
		link, err := netlink.LinkByName("outside")
		if err != nil {
			return err
		}
		for i := range stuffers {
			bits := 24
			if s.stuffer(i).Is6() {
				bits = 64
			}
			addr, err := netlink.ParseAddr(netip.PrefixFrom(s.stuffer(i), bits).String())
			if err != nil {
				return err
			}
			addr.Flags = syscall.IFA_F_NODAD
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		return nil
	})
	s.in(s.host, func() error {
		link, err := netlink.LinkByName("shielded")
		if err != nil {
			return err
		}
		_, to, err := net.ParseCIDR("2001:db8:0:66::/64")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: to})
	})
}

func (s *stuffing) stuffer(i int) netip.Addr {
	if i == stuffers-1 {
		return netip.MustParseAddr("2001:db8:0:66::66")
	}
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(100 + i)})
}

// user is a client of the server, from an address.
func (s *stuffing) user(from netip.Addr, patience time.Duration) *http.Client {
	transport := &http.Transport{DialContext: func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		err = inside(s.peer, func() (err error) {
			conn, err = d.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}}
	s.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

func post(c *http.Client, url, password string) (int, error) {
	r, err := http.NewRequest(http.MethodPost, url+"/login", nil)
	if err != nil {
		return 0, err
	}
	r.Header.Set("User", "ann")
	r.Header.Set("Password", password)
	response, err := c.Do(r)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// Who tries passwords is in the kernel as soon as the threshold is reached, and its packets end there;
// who uses the same server meanwhile sees no error.
func TestStuffing(t *testing.T) {
	s := newStuffing(t)
	ctx, stop := context.WithCancel(t.Context())
	var ordinary sync.WaitGroup
	var asked, wrong atomic.Int64
	me := s.user(netip.MustParseAddr("192.0.2.2"), 20*time.Second)
	ordinary.Go(func() {
		for tick := time.NewTicker(10 * time.Millisecond); ctx.Err() == nil; <-tick.C {
			code, err := post(me, s.four, "right")
			if asked.Add(1); err != nil || code != http.StatusOK {
				t.Errorf("the ordinary client saw %d, %v", code, err)
				wrong.Add(1)
			}
		}
	})
	var took []time.Duration
	for i := range stuffers {
		from, url := s.stuffer(i), s.four
		if from.Is6() {
			url = s.six
		}
		c := s.user(from, 20*time.Second)
		for n := range 10 {
			if code, err := post(c, url, fmt.Sprint("guess ", n)); err != nil || code != http.StatusUnauthorized {
				t.Fatalf("%s, guess %d: %d, %v", from, n, code, err)
			}
		}
		select {
		case e := <-s.banned:
			if e.Kind != httpguard.Banned || e.Client.Addr != from {
				t.Fatalf("%s: %+v", from, e)
			}
			took = append(took, e.Took)
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not banned", from)
		}
		before := s.bannedPackets()
		c.Timeout = 300 * time.Millisecond
		if code, err := post(c, url, "guess"); err == nil {
			t.Errorf("%s got an answer after its ban: %d", from, code)
		}
		c.CloseIdleConnections()
		if code, err := post(c, url, "guess"); err == nil {
			t.Errorf("%s could connect again after its ban: %d", from, code)
		}
		if after := s.bannedPackets(); after <= before {
			t.Errorf("%s: the kernel dropped %d packets for bans before, %d after", from, before, after)
		}
	}
	stop()
	ordinary.Wait()
	slices.Sort(took)
	t.Logf("from the threshold to durable and in the kernel, %d stuffers: median %s, worst %s; the ordinary client asked %d times, %d went wrong",
		len(took), took[len(took)/2], took[len(took)-1], asked.Load(), wrong.Load())
	// 50 ms is the aim; a machine that is busy with other things gets more.
	if worst := took[len(took)-1]; worst > 2*time.Second {
		t.Errorf("the worst took %s", worst)
	}
	if asked.Load() < 100 {
		t.Errorf("the ordinary client asked %d times alone", asked.Load())
	}
	page, err := s.Bans(t.Context(), state.Filter{Origin: "api:shop"})
	if err != nil || page.Total != stuffers || !strings.Contains(page.Bans[0].Reason, "failed logins, 10 within 1m0s") {
		t.Errorf("%+v, %v", page, err)
	}
	// Without a daemon the server goes on by itself.
	s.kill()
	if code, err := post(me, s.four, "right"); err != nil || code != http.StatusOK {
		t.Errorf("without a daemon: %d, %v", code, err)
	}
}

// bannedPackets is how many packets of banned sources the program has dropped.
func (s *stuffing) bannedPackets() (n uint64) {
	s.Helper()
	stats, err := s.Stats(s.Context())
	if err != nil {
		s.Fatal(err)
	}
	for _, c := range stats.Counters {
		if c.Reason == "banned" && c.Action == state.ActionDrop {
			n += c.Packets
		}
	}
	return n
}
