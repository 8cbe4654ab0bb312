package systemd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bare returns a bare Debian 12, which scripts/debian makes once and nobody writes to.
func bare(t *testing.T) string {
	t.Helper()
	if os.Getenv("LEVEE_SYSTEMD") == "" {
		t.Skip("boots a Debian: run it by `make test-systemd`")
	}
	if os.Geteuid() != 0 {
		t.Fatal("needs root")
	}
	for _, tool := range []string{"debootstrap", "systemd-nspawn", "nsenter", "dpkg-deb"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%v; run `scripts/setup service`", err)
		}
	}
	lines := strings.Fields(run(t, 10*time.Minute, repository+"/scripts/debian"))
	return lines[len(lines)-1]
}

func run(t *testing.T, limit time.Duration, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// container is a Debian that can be booted. What is written to it goes when the test ends.
type container struct {
	*testing.T
	root  string
	bpffs string
	pid   int // of its init
	cmd   *exec.Cmd
	said  *bytes.Buffer
}

func newContainer(t *testing.T) *container {
	t.Helper()
	lower := bare(t)
	dir := t.TempDir()
	c := &container{T: t, root: filepath.Join(dir, "root"), bpffs: filepath.Join(dir, "bpf")}
	upper, work := filepath.Join(dir, "upper"), filepath.Join(dir, "work")
	for _, d := range []string{c.root, c.bpffs, upper, work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work)
	if err := unix.Mount("overlay", c.root, "overlay", 0, options); err != nil {
		t.Fatalf("mount an overlay on %s: %v", c.root, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(c.root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return c
}

// write puts a file into the container.
func (c *container) write(path, text string) {
	c.Helper()
	path = filepath.Join(c.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil { // the container's own
		c.Fatal(err)
	}
}

// boot starts systemd and returns when it has come up, whatever failed. Like a host that boots, it has
// an empty bpf filesystem, with the mode that systemd gives it.
func (c *container) boot() {
	c.Helper()
	if err := unix.Mount("bpf", c.bpffs, "bpf", 0, "mode=700"); err != nil {
		c.Fatalf("mount a bpf filesystem: %v", err)
	}
	c.said = new(bytes.Buffer)
	c.cmd = exec.Command("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--private-network", "--console=pipe",
		"--boot", "-D", c.root, "--capability=all", "--system-call-filter=bpf perf_event_open", "--bind="+c.bpffs+":/sys/fs/bpf")
	c.cmd.Stdout, c.cmd.Stderr = c.said, c.said
	// Its own session: what is meant for the container does not reach the test.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { c.halt(syscall.SIGKILL) })
	var state string
	c.within(time.Minute, "the container's boot", func() bool {
		// The first child prepares the container, and makes way for the one that is its init.
		if c.pid = child(c.cmd.Process.Pid); c.pid == 0 {
			return false
		}
		state, _ = c.try("systemctl is-system-running")
		state = strings.TrimSpace(state)
		return state == "running" || state == "degraded"
	})
	c.Logf("booted, and is %s", state)
}

// halt ends the container: SIGKILL as a power cut does, which is what tells whether decisions are on
// disk.
func (c *container) halt(signal syscall.Signal) {
	c.Helper()
	if c.cmd == nil {
		return
	}
	if err := syscall.Kill(c.pid, signal); err != nil && c.pid != 0 {
		c.Errorf("end the container: %v", err)
	}
	_ = c.cmd.Wait() // how it ended was our doing
	c.cmd, c.pid = nil, 0
	if err := unix.Unmount(c.bpffs, unix.MNT_DETACH); err != nil {
		c.Error(err)
	}
}

// child returns a process's only child, or 0.
func child(parent int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", parent, parent))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0
	}
	pid, _ := strconv.Atoi(fields[0])
	return pid
}

// try runs a shell command in the container as root.
func (c *container) try(command string) (out string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(c.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--",
		"/bin/sh", "-c", command)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive", "NO_COLOR=1", "SYSTEMD_COLORS=0", "SYSTEMD_PAGER="}
	cmd.Dir = "/"
	text, err := cmd.CombinedOutput()
	return string(text), err
}

// must runs a shell command that has to succeed.
func (c *container) must(command string) string {
	c.Helper()
	out, err := c.try(command)
	if err != nil {
		log, _ := c.try("journalctl --no-pager -n 40 -o cat -u levee; systemctl status --no-pager levee | head -20")
		c.Fatalf("%s: %v\n%s\nThe service:\n%s", command, err, out, log)
	}
	return strings.TrimSpace(out)
}

// want runs a command and compares what it says.
func (c *container) want(command, answer string) {
	c.Helper()
	if out, _ := c.try(command); strings.TrimSpace(out) != answer {
		c.Errorf("%s: it says %q, want %q", command, strings.TrimSpace(out), answer)
	}
}

// within waits for something to become true.
func (c *container) within(limit time.Duration, what string, ok func() bool) {
	c.Helper()
	for deadline := time.Now().Add(limit); !ok(); {
		if time.Now().After(deadline) {
			log := ""
			if c.pid != 0 {
				log, _ = c.try("journalctl --no-pager -n 40 -o cat; systemctl --failed --no-pager; systemctl list-jobs")
			}
			c.Fatalf("not within %s: %s\n%s\n%s", limit, what, c.said, log)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
