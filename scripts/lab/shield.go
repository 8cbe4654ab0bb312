package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// Where the daemon keeps its things; all in the host's own /run.
const (
	shieldDir     = "/run/levee"
	shieldConfig  = shieldDir + "/levee.yaml"
	shieldSocket  = shieldDir + "/levee.sock"
	shieldState   = shieldDir + "/state.db"
	shieldMetrics = "127.0.0.1:9464"
)

// config is what the daemon is started with. Limits like these do for an API: a client that opens
// 250 connections a second, as the lab's does, stays well below them.
var config = template.Must(template.New("levee.yaml").Parse(`# The lab's configuration.
interfaces:
  - {name: {{.Interface}}, mode: native}
state: {path: {{.State}}}
metrics: {listen: "{{.Metrics}}"}
limits:
  default:
    packets: 5k/s
    syn: 500/s
    udp: 1k/s
    icmp: 100/s
    fragments: 100/s
    penalty: 10s
  customers:
    sources: [{{.Customers}}]
    packets: 20k/s
    syn: 2k/s
  probe:
    sources: [{{.Probe}}]
    packets: 20k/s
`))

// shield is the real daemon, at work in the host's namespace.
type shield struct {
	bin    string
	net    *network
	daemon *exec.Cmd
	log    *logBuffer
}

// startShield starts the daemon and waits until it shields.
func startShield(ctx context.Context, n *network, bin string) (*shield, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	s := &shield{bin: bin, net: n, log: &logBuffer{}}
	var text bytes.Buffer
	err = config.Execute(&text, map[string]string{
		"Interface": n.hostLink, "State": shieldState, "Metrics": shieldMetrics,
		"Customers": customers(),
		"Probe":     netip.PrefixFrom(probeAddrs.four, 24).Masked().String() + `, "` + netip.PrefixFrom(probeAddrs.six, 48).Masked().String() + `"`,
	})
	if err != nil {
		return nil, err
	}
	err = n.host.Do(func() error {
		return errors.Join(os.MkdirAll(shieldDir, 0o700), os.WriteFile(shieldConfig, text.Bytes(), 0o600))
	})
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

func customers() string {
	return netip.PrefixFrom(clientAddrs.four, 24).Masked().String() + `, "` + netip.PrefixFrom(clientAddrs.six, 48).Masked().String() + `"`
}

func (s *shield) start(ctx context.Context) error {
	s.daemon = exec.CommandContext(ctx, s.bin, "run", "--config", shieldConfig, "--socket", shieldSocket)
	s.daemon.Stdout, s.daemon.Stderr = s.log, s.log
	s.daemon.SysProcAttr = space.ChildAttr()
	s.daemon.Cancel = func() error { return s.daemon.Process.Signal(syscall.SIGTERM) }
	s.daemon.WaitDelay = 2 * time.Second
	if err := s.net.host.Do(s.daemon.Start); err != nil {
		return fmt.Errorf("start %s: %w", s.bin, err)
	}
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := s.ready()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) || s.daemon.Process.Signal(syscall.Signal(0)) != nil {
			s.kill()
			return fmt.Errorf("the daemon does not get ready: %w\n%s", err, s.log)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			s.kill()
			return err
		}
	}
}

// kill ends the daemon as kill -9 does. The shield stands.
func (s *shield) kill() {
	_ = s.daemon.Process.Kill()
	_ = s.daemon.Wait()
}

// stop ends the daemon in good order.
func (s *shield) stop() error {
	_ = s.daemon.Process.Signal(syscall.SIGTERM)
	if err := s.daemon.Wait(); err != nil {
		return fmt.Errorf("the daemon did not end well: %w\n%s", err, s.log)
	}
	return nil
}

func (s *shield) ready() error {
	_, err := s.get("/readyz")
	return err
}

func (s *shield) get(path string) ([]byte, error) {
	client := http.Client{
		Timeout: time.Second,
		Transport: &http.Transport{
			DisableKeepAlives: true,
			DialContext: func(_ context.Context, network, address string) (net.Conn, error) {
				return s.net.host.Dial(network, address, time.Second)
			},
		},
	}
	response, err := client.Get("http://" + shieldMetrics + path)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, response.Status, strings.TrimSpace(string(body)))
	}
	return body, err
}

// counts is packets by action and reason.
type counts map[[2]string]uint64

// count reads what the shield has counted so far, from its metrics.
func (s *shield) count() (counts, error) {
	body, err := s.get("/metrics")
	if err != nil {
		return nil, fmt.Errorf("read the metrics: %w", err)
	}
	c := counts{}
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(line, "levee_packets_total{")
		if !ok {
			continue
		}
		labels, value, ok := strings.Cut(rest, "} ")
		if !ok {
			continue
		}
		number, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil {
			return nil, fmt.Errorf("read the metrics: %w", err)
		}
		var key [2]string
		for label := range strings.SplitSeq(labels, ",") {
			name, quoted, _ := strings.Cut(label, "=")
			switch name {
			case "action":
				key[0] = strings.Trim(quoted, `"`)
			case "reason":
				key[1] = strings.Trim(quoted, `"`)
			}
		}
		c[key] += uint64(number)
	}
	return c, nil
}

// since is what was dropped since an earlier count, by reason, and how many packets passed.
func (c counts) since(before counts) (dropped map[string]uint64, passed uint64) {
	dropped = map[string]uint64{}
	for key, n := range c {
		n -= before[key]
		switch {
		case n == 0:
		case key[0] == "drop":
			dropped[key[1]] += n
		default:
			passed += n
		}
	}
	return dropped, passed
}

// command runs one of levee's verbs against the daemon. It returns its output and when that came.
func (s *shield) command(ctx context.Context, input io.Reader, args ...string) ([]byte, time.Time, error) {
	var stdout answer
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, s.bin, append([]string{"--socket", shieldSocket}, args...)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = input, &stdout, &stderr
	cmd.SysProcAttr = space.ChildAttr()
	if err := s.net.host.Do(cmd.Start); err != nil {
		return nil, time.Time{}, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, time.Time{}, fmt.Errorf("levee %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	if stdout.at.IsZero() {
		stdout.at = time.Now()
	}
	return stdout.Bytes(), stdout.at, nil
}

// answer is a command's output, and when it began.
type answer struct {
	bytes.Buffer
	at time.Time
}

func (a *answer) Write(b []byte) (int, error) {
	if a.at.IsZero() {
		a.at = time.Now()
	}
	return a.Buffer.Write(b)
}

type banAnswer struct {
	at      time.Time
	expires []time.Time // in the order of the prefixes
}

// ban bans prefixes for a while.
func (s *shield) ban(ctx context.Context, length time.Duration, prefixes []netip.Prefix) (banAnswer, error) {
	args := []string{"ban", "--for", length.String(), "--reason", "lab", "--output", "json"}
	for _, p := range prefixes {
		args = append(args, p.String())
	}
	output, at, err := s.command(ctx, nil, args...)
	if err != nil {
		return banAnswer{}, err
	}
	expires, err := expiries(output)
	if err == nil && len(expires) != len(prefixes) {
		err = fmt.Errorf("%d bans have %d times of expiry: %s", len(prefixes), len(expires), output)
	}
	return banAnswer{at, expires}, err
}

// banList bans a list of addresses, one a line on standard input, as an API would push it.
func (s *shield) banList(ctx context.Context, addrs []netip.Addr) error {
	var list strings.Builder
	for _, a := range addrs {
		p, err := a.Prefix(min(a.BitLen(), 64))
		if err != nil {
			return err
		}
		fmt.Fprintln(&list, p)
	}
	_, _, err := s.command(ctx, strings.NewReader(list.String()), "ban", "-", "--for", "10m", "--reason", "botnet")
	return err
}

// emergency is what an operator does against a flood of forged sources: whoever is not a customer
// shares a small rate with all of its /8 (IPv6: /16). It drops most of the flood, and most of the
// strangers with it: by address, nobody can tell them apart.
func (s *shield) emergency(ctx context.Context) error {
	_, _, err := s.command(ctx, nil, "limit", "set", "emergency", "--service", "tcp",
		"--packets", "5k/s", "--syn", "500/s", "--penalty", "10s",
		"--aggregate", "100/s", "--aggregate4", "8", "--aggregate6", "16", "--aggregate-always")
	return err
}

func expiries(output []byte) ([]time.Time, error) {
	var result struct {
		Bans []struct {
			Expires time.Time `json:"expires"`
		} `json:"bans"`
	}
	if err := json.Unmarshal(output, &result); err != nil {
		return nil, fmt.Errorf("read the answer to a ban: %w: %s", err, output)
	}
	var times []time.Time
	for _, b := range result.Bans {
		times = append(times, b.Expires)
	}
	return times, nil
}
