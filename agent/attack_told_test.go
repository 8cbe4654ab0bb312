package agent

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	webhook "github.com/levee-xdp/levee/agent/notify"
	"github.com/levee-xdp/levee/agent/state"
)

// hook takes notifications in the host's namespace. It has no time for the first.
type hook struct {
	*lab
	url    string
	posted chan delivery
}

type delivery struct {
	id   string
	body webhook.Body
}

const hookSecret = "what the webhook and the daemon share"

func (l *lab) hook() *hook {
	l.Helper()
	h := &hook{lab: l, posted: make(chan delivery, 100)}
	var listener net.Listener
	l.in(l.host, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		listener, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	first := true
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			l.Error(err)
		}
		// As docs/notify.md says.
		mac := hmac.New(sha256.New, []byte(hookSecret))
		fmt.Fprintf(mac, "%s.%s", r.Header.Get("X-Levee-Timestamp"), body)
		if got := r.Header.Get("X-Levee-Signature"); got != "sha256="+hex.EncodeToString(mac.Sum(nil)) {
			l.Errorf("the signature is %q", got)
		}
		d := delivery{id: r.Header.Get("X-Levee-Delivery")}
		if err := json.Unmarshal(body, &d.body); err != nil || string(d.body.Event) != r.Header.Get("X-Levee-Event") {
			l.Errorf("%v: %s", err, body)
		}
		if first {
			first = false
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		h.posted <- d
	}), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	l.Cleanup(func() { server.Close(); <-done })
	h.url = "http://" + listener.Addr().String() + "/levee"
	return h
}

// next is what comes next, while meanwhile is done again and again.
func (h *hook) next(event webhook.Event, meanwhile func()) delivery {
	h.Helper()
	for until := time.Now().Add(30 * time.Second); time.Now().Before(until); time.Sleep(time.Millisecond) {
		select {
		case d := <-h.posted:
			if d.body.Event != event {
				h.Fatalf("%s came, and %s was next: %+v", d.body.Event, event, d.body)
			}
			return d
		default:
			meanwhile()
		}
	}
	h.Fatalf("no %s came", event)
	return delivery{}
}

// A flood is told to a webhook as it begins, goes on and has ended, with the figures that the kernel has.
func TestFloodIsTold(t *testing.T) {
	l := newLab(t)
	h := l.hook()
	secret := filepath.Join(l.dir, "secret")
	if err := os.WriteFile(secret, []byte(hookSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l.write(fmt.Sprintf(`interfaces: [shielded]
notify: {url: "%s", secret_file: "%s", start: 100/s, after: 1s, end: 10/s, quiet: 3s, summary: 10s, attempts: 3}
`, h.url, secret))
	began := time.Now()
	l.start()
	w := l.wire("ipv4")
	w.mustPass("before")
	if r, err := l.Ban(t.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: w.source.String()}}}); err != nil || r.Done != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	flood := func() {
		for range 4 {
			w.send()
		}
	}
	refused := h.next(webhook.Start, flood)
	start := h.next(webhook.Start, flood)
	if start.id != refused.id || start.body.Attack.ID != refused.body.Attack.ID {
		t.Errorf("what was tried again came under another name: %+v, %+v", refused, start)
	}
	summary := h.next(webhook.Summary, flood)
	end := delivery{}
	for end.id == "" { // summaries go on until calm has lasted
		select {
		case d := <-h.posted:
			if d.body.Event == webhook.End {
				end = d
			}
		case <-time.After(30 * time.Second):
			t.Fatal("no end came")
		}
	}
	for _, d := range []delivery{start, summary, end} {
		a := d.body.Attack
		if d.body.Version != 1 || d.body.Mode != "enforce" || d.body.Levee != "test" || a.ID != start.body.Attack.ID || a.Packets < 100 ||
			a.Monitored != 0 || len(a.Reasons) != 1 || a.Reasons[0].Name != "banned" || a.Reasons[0].Packets != a.Packets ||
			len(a.Interfaces) != 1 || a.Interfaces[0].Name != "shielded" || a.Started.Before(began) || a.Peak < 100 {
			t.Errorf("%s: %+v", d.body.Event, d.body)
		}
	}
	if start.id == summary.id || summary.id == end.id || start.body.Attack.Packets >= summary.body.Attack.Packets || !start.body.Attack.Ended.IsZero() {
		t.Errorf("start %+v\nsummary %+v", start, summary)
	}
	if a := end.body.Attack; a.Packets != l.dropped("banned") || !a.Ended.After(a.Started) || time.Since(a.Ended) < 3*time.Second {
		t.Errorf("%d packets were dropped, and at the end it was told: %+v", l.dropped("banned"), a)
	}
	select {
	case d := <-h.posted:
		t.Errorf("after the end came: %+v", d.body)
	default:
	}
}
