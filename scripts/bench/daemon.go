package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// daemon is a daemon of the benchmark's own: its socket, state and pins are nobody else's.
type daemon struct {
	binary string
	dir    string
	root   string // of its pins
	client *client.Client
	cmd    *exec.Cmd
	ended  chan struct{} // closed when it has
	log    bytes.Buffer
}

const (
	startWait = 30 * time.Second
	stopWait  = 10 * time.Second
)

// daemonRows times the daemon, through its socket.
func (b *bench) daemonRows(ctx context.Context, dir, list string) error {
	d := &daemon{binary: b.daemon, dir: dir, root: pinsRoot()}
	if d.binary == "" {
		d.binary = filepath.Join(dir, "levee")
		build := exec.CommandContext(ctx, "go", "build", "-o", d.binary, "github.com/levee-xdp/levee/cmd/levee")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("build levee: %w: %s", err, lastLine(string(out)))
		}
	}
	settings := fmt.Sprintf("api: {socket: %[1]s/sock}\nmetrics: {listen: \"off\"}\nstate: {path: %[1]s/state.db}\nbpffs: %[2]s\nlock: %[1]s/lock\n", dir, d.root)
	if err := os.WriteFile(filepath.Join(dir, "levee.yaml"), []byte(settings), 0o600); err != nil {
		return err
	}
	d.client = client.New(client.Config{Socket: filepath.Join(dir, "sock"), Timeout: 2 * time.Minute})
	defer d.client.Close()
	defer func() {
		d.stop()
		b.removePins(d.root)
	}()
	if _, err := d.start(ctx); err != nil {
		return err
	}

	// Many bans at once need room, so they come first, and go before the others come.
	crowd, err := d.times(ctx, 200, 400, b.singles()/4, d.ban)
	if err != nil {
		return err
	}
	bulks, err := d.times(ctx, 200, 400, b.singles()/4, d.bulk)
	if err != nil {
		return err
	}
	var empty, loaded []float64
	prefixes := 0
	for range b.few() {
		if err := d.forget(); err != nil {
			return err
		}
		took, err := d.start(ctx)
		if err != nil {
			return err
		}
		empty = append(empty, took.Seconds())
		start := time.Now()
		if prefixes, err = d.load(ctx, list); err != nil {
			return err
		}
		loaded = append(loaded, time.Since(start).Seconds())
	}
	full := prefixes >= 1_000_000
	base := row{Part: "control", Case: "daemon"}
	figures := func(what, unit string, f figure, limit float64, note string) {
		r := base
		r.Subject, r.Unit, r.Figure, r.Note = what, unit, f, note
		if limit > 0 && full {
			r = r.atMost(limit)
			r.Bound.Absolute = unit != "MB"
		}
		b.report.Rows = append(b.report.Rows, r)
	}
	add := func(what, unit string, value, limit float64, note string) {
		figures(what, unit, figure{value, value, value}, limit, note)
	}
	figures("load a file, to enforced and durable", "s", figureOf(loaded), 1.5, fmt.Sprintf("%d prefixes", prefixes))

	told := func(name string, times latencies, bans int, limit float64, with string) {
		add(name+", p99", "ms", times.at(0.99), limit, fmt.Sprintf("p50 %s ms, p99.9 %s ms, %s bans/s%s",
			number(times.at(0.5)), number(times.at(0.999)), number(times.rate*float64(bans)), with))
	}
	for _, t := range []struct {
		name           string
		callers, calls int
		limit          float64
	}{
		{"one ban after the other", 1, b.singles(), 5},
		{"16 callers", 16, b.singles(), 0},
		{"200 callers", 200, 4 * b.singles(), 0},
	} {
		times, err := d.times(ctx, t.callers, t.calls, 1, d.ban)
		if err != nil {
			return err
		}
		told(t.name, times, 1, t.limit, "")
	}
	memory := func(what string, limit float64) error {
		m, err := d.resident()
		if err == nil {
			add(what, "MB", m["VmRSS"], limit, fmt.Sprintf("its own %s MB, the tables' mapping %s MB",
				number(m["RssAnon"]), number(m["RssShmem"]+m["RssFile"])))
		}
		return err
	}
	if err := memory("memory after the load and these calls, resident", 0); err != nil {
		return err
	}
	const alone = ", no other bans"
	told(fmt.Sprintf("200 callers, %d bans a call", b.singles()/4), crowd, b.singles()/4, 0, alone)
	told(fmt.Sprintf("200 callers, %d lines a bulk", b.singles()/4), bulks, b.singles()/4, 0, alone)

	d.stop()
	again, err := d.start(ctx)
	if err != nil {
		return err
	}
	figures("start, no bans", "s", figureOf(empty), 0, "")
	add("restart with all bans, to ready", "s", again.Seconds(), 2, "")
	return memory("memory with all bans, resident", 300)
}

func (b *bench) singles() int {
	if b.quick {
		return 100
	}
	return 2000
}

// start starts the daemon, and says how long it took until it was ready.
func (d *daemon) start(ctx context.Context) (time.Duration, error) {
	d.log.Reset()
	cmd, ended := exec.CommandContext(ctx, d.binary, "run", "--config", filepath.Join(d.dir, "levee.yaml")), make(chan struct{})
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start levee: %w", err)
	}
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	d.cmd, d.ended = cmd, ended
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for time.Since(start) < startWait {
		if s, err := d.client.Status(ctx, 0); err == nil && s.Health.State != "starting" {
			return time.Since(start), nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			d.stop()
			return 0, ctx.Err()
		case <-ended:
			d.stop()
			return 0, fmt.Errorf("levee ended before it was ready: %s", lastLine(d.log.String()))
		}
	}
	d.stop()
	return 0, fmt.Errorf("levee is not ready after %s: %s", startWait, lastLine(d.log.String()))
}

func (d *daemon) stop() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(stopWait):
		_ = d.cmd.Process.Kill()
		<-d.ended
	}
	d.cmd = nil
}

// forget stops the daemon, and takes away its state and its pins.
func (d *daemon) forget() error {
	d.stop()
	_, err := loader.Remove(d.root)
	return errors.Join(err, os.RemoveAll(filepath.Join(d.dir, "state.db")))
}

// load has the daemon ban what a file lists, and says how many that were.
func (d *daemon) load(ctx context.Context, list string) (int, error) {
	f, err := os.Open(list)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	answer, err := d.client.BanBulk(ctx, state.BulkRequest{Reason: "benchmark"}, client.PlainLines, f)
	if err != nil {
		return 0, err
	}
	if answer.Refused > 0 {
		return 0, fmt.Errorf("%d of %d bans were refused: %w", answer.Refused, answer.Lines, answer.Errors[0].Error)
	}
	return answer.Lines, nil
}

// timed is who speaks for the bans that are timed.
const timed = state.OriginAPI + ":timed"

// ban asks for bans, and fails if all were refused.
func (d *daemon) ban(ctx context.Context, prefixes ...netip.Prefix) error {
	request := state.BanRequest{Bans: make([]state.BanItem, len(prefixes))}
	for i, p := range prefixes {
		request.Bans[i] = state.BanItem{Prefix: p.String(), Origin: timed, Reason: "benchmark"}
	}
	answer, err := d.client.Ban(ctx, request)
	if err != nil {
		return err
	}
	if answer.Done == 0 {
		return errors.New("all bans were refused")
	}
	return nil
}

// bulk bans the same by lines of text, all of which have to be taken.
func (d *daemon) bulk(ctx context.Context, prefixes ...netip.Prefix) error {
	var lines bytes.Buffer
	for _, p := range prefixes {
		fmt.Fprintln(&lines, p)
	}
	answer, err := d.client.BanBulk(ctx, state.BulkRequest{Origin: timed, Reason: "benchmark"}, client.PlainLines, &lines)
	if err == nil && answer.Refused > 0 {
		err = fmt.Errorf("%d bans were refused", answer.Refused)
	}
	return err
}

// latencies are times of requests in ms, sorted, and how many a second there were.
type latencies struct {
	ms   []float64
	rate float64
}

func (l latencies) at(q float64) float64 { return l.ms[int(q*float64(len(l.ms)-1))] }

// times has so many callers at once make so many calls in all, each for so many bans of addresses that
// nobody has banned. They are taken back untimed, for the tables are full enough as it is.
func (d *daemon) times(ctx context.Context, callers, calls, bans int, ban func(context.Context, ...netip.Prefix) error) (latencies, error) {
	var (
		mu   sync.Mutex
		all  latencies
		errs []error
		wait sync.WaitGroup
	)
	start := time.Now()
	for caller := range callers {
		wait.Go(func() {
			for call := range calls / callers {
				prefixes := make([]netip.Prefix, bans)
				for i := range prefixes {
					var b [4]byte
					binary.BigEndian.PutUint32(b[:], 100<<24|64<<16+uint32((caller*(calls/callers)+call)*bans+i))
					prefixes[i] = netip.PrefixFrom(netip.AddrFrom4(b), 32)
				}
				begin := time.Now()
				err := ban(ctx, prefixes...)
				took := time.Since(begin)
				mu.Lock()
				all.ms = append(all.ms, took.Seconds()*1000)
				if err != nil {
					errs = append(errs, err)
				}
				mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	wait.Wait()
	all.rate = float64(len(all.ms)) / time.Since(start).Seconds()
	slices.Sort(all.ms)
	_, err := d.client.Unban(ctx, state.UnbanRequest{Origin: timed})
	return all, errors.Join(append(errs, err)...)
}

// resident is what the daemon holds in memory, in MB, by the names of proc(5).
func (d *daemon) resident() (map[string]float64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return nil, err
	}
	all := make(map[string]float64)
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[2] == "kB" {
			kb, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return nil, err
			}
			all[strings.TrimSuffix(fields[0], ":")] = kb * 1024 / 1e6
		}
	}
	return all, nil
}
