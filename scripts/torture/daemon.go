package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/scripts/internal/space"
)

// variant is what may differ between two programs of which one follows the other.
type variant struct {
	events bool // a feature: another program, which a link update puts in the place of the one before
	larger bool // other sizes: another set of tables, which takes the place of the one before
}

// host runs the daemon in the world's host, and speaks to it.
type host struct {
	*world
	bin, dir string
	client   *client.Client
}

func newHost(w *world, bin, dir string) (*host, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, err
	}
	h := &host{world: w, bin: bin, dir: dir}
	h.client = client.New(client.Config{Socket: h.path("s"), Timeout: 10 * time.Second, Retries: -1}) // what came of a call is to be known
	return h, nil
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) configure(v variant) error {
	bans := 8192
	if v.larger {
		bans *= 2
	}
	text := fmt.Sprintf(`interfaces: [%s]
api: {socket: %s, group: ""}
state: {path: %s}
lock: %s
bpffs: %s
metrics: {listen: "off"}
tables: {ipv4_bans: %d, ipv6_bans: 8192, sources: 4096, allows: 100}
features: {events: %v}
`, shielded, h.path("s"), h.path("state/state.db"), h.path("lock"), root, bans, v.events)
	return os.WriteFile(h.path("levee.yaml"), []byte(text), 0o600)
}

// daemon is one life of the daemon.
type daemon struct {
	host   *host
	cmd    *exec.Cmd
	pid    int // of the daemon itself, which may run under the tracer
	log    *logBuffer
	exited chan struct{}
	err    error // of its end, once it has exited
	trace  *traceReader
}

// logBuffer keeps what a daemon says.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// start starts the daemon, under the tracer if there is a plan.
func (h *host) start(p *plan) (*daemon, error) {
	d := &daemon{host: h, log: &logBuffer{}, exited: make(chan struct{})}
	args := []string{h.bin, "run", "--config", h.path("levee.yaml")}
	if p != nil {
		text, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		args = append([]string{self, roleTrace, string(text)}, args...)
	}
	d.cmd = exec.Command(args[0], args[1:]...)
	d.cmd.Env = append(os.Environ(), "GOTRACEBACK=single")
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = space.ChildAttr()
	if p != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		defer w.Close()
		d.cmd.ExtraFiles = []*os.File{w}
		d.trace = newTraceReader(r)
	}
	if err := h.host.Do(d.cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", args[0], err)
	}
	d.pid = d.cmd.Process.Pid
	go func() {
		d.err = d.cmd.Wait()
		close(d.exited)
	}()
	if d.trace != nil {
		pid, err := d.trace.pid()
		if err != nil {
			d.kill()
			return nil, fmt.Errorf("trace the daemon: %w\n%s", err, d.log)
		}
		d.pid = pid
	}
	return d, nil
}

// errEnded says that the daemon ended before it got ready.
var errEnded = errors.New("the daemon has ended")

// errNotReady says that the daemon lives and does not answer.
var errNotReady = errors.New("the daemon does not get ready")

// awaitReady waits until the daemon serves and shields.
func (d *daemon) awaitReady(ctx context.Context) error {
	deadline := time.Now().Add(20 * time.Second)
	for {
		o, err := d.host.client.Status(ctx, 0)
		if err == nil && o.Health.State != "starting" {
			return nil
		}
		select {
		case <-d.exited:
			return errEnded
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %w\n%s", errNotReady, err, d.log)
		}
	}
}

// kill ends the daemon as kill -9 does, and waits until it is gone.
func (d *daemon) kill() {
	_ = syscall.Kill(d.pid, syscall.SIGKILL)
	<-d.exited
	d.host.client.Close()
}

// stop ends it in good order.
func (d *daemon) stop() error {
	_ = syscall.Kill(d.pid, syscall.SIGTERM)
	select {
	case <-d.exited:
	case <-time.After(20 * time.Second):
		d.kill()
		return fmt.Errorf("the daemon does not end\n%s", d.log)
	}
	d.host.client.Close()
	if d.err != nil {
		return fmt.Errorf("the daemon did not end well: %w\n%s", d.err, d.log)
	}
	return nil
}

// ended tells whether the daemon has exited by now.
func (d *daemon) ended() bool {
	select {
	case <-d.exited:
		return true
	default:
		return false
	}
}

// descriptors says what the daemon holds open of the kernel's objects and of its own files, sorted.
func (d *daemon) descriptors() (list []string, err error) {
	dir := fmt.Sprintf("/proc/%d/fd", d.pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		object, isObject := strings.CutPrefix(to, "anon_inode:")
		file, isOwn := strings.CutPrefix(to, d.host.dir)
		if err == nil && (isObject || isOwn) {
			if isOwn {
				object = file
			}
			list = append(list, object)
		}
	}
	slices.Sort(list)
	return list, nil
}

// run runs one of levee's verbs, and returns its output and exit code.
func (h *host) run(ctx context.Context, stdin io.Reader, args ...string) (string, int, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, h.bin, args...)
	cmd.Env = append(os.Environ(), "LEVEE_SOCKET="+h.path("s"), "LEVEE_CONFIG="+h.path("levee.yaml"), "NO_COLOR=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &out
	cmd.SysProcAttr = space.ChildAttr()
	if err := h.host.Do(cmd.Start); err != nil {
		return "", 0, err
	}
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		return "", 0, err
	}
	return out.String(), cmd.ProcessState.ExitCode(), nil
}
