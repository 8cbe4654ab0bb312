package loader

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fine is a host that lacks nothing.
func fine() host {
	return host{
		capabilities: func() (uint64, error) { return 1<<39 | 1<<38 | 1<<12, nil },
		release:      func() (string, error) { return "6.12.1-generic", nil },
		statfs:       func(string) (unix.Statfs_t, error) { return unix.Statfs_t{Type: unix.BPF_FS_MAGIC}, nil },
		program:      func() error { return nil },
		jit:          func() (string, error) { return "1", nil },
		memlock:      func() error { return nil },
		frags:        func() bool { return true },
		v4:           func() bool { return true },
		clock:        func() (time.Duration, error) { return 0, nil },
	}
}

func TestProbe(t *testing.T) {
	if r := probe(DefaultRoot, fine()); len(r.Findings) != 0 || r.Err() != nil || r.Kernel != "6.12.1-generic" {
		t.Errorf("a fine host: %+v", r)
	}
	caps := func(c uint64) func(*host) {
		return func(h *host) { h.capabilities = func() (uint64, error) { return c, nil } }
	}
	program := func(err error) func(*host) {
		return func(h *host) { h.program = func() error { return err } }
	}
	release := func(r string) func(*host) {
		return func(h *host) { h.release = func() (string, error) { return r, nil } }
	}
	statfs := func(st unix.Statfs_t) func(*host) {
		return func(h *host) { h.statfs = func(string) (unix.Statfs_t, error) { return st, nil } }
	}
	for _, c := range []struct {
		name     string
		but      func(*host)
		severity Severity
		words    []string
	}{
		{"unprivileged", caps(0), Fatal, []string{"privileges:", "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "run it as root", "AmbientCapabilities"}},
		{"no net admin", caps(1 << capSysAdmin), Fatal, []string{"CAP_NET_ADMIN"}},
		{"old kernel", release("5.10.0-28-amd64"), Fatal, []string{"5.10.0-28-amd64", "needs 5.15"}},
		{"older kernel", release("4.19.0"), Fatal, []string{"needs 5.15"}},
		{"untested kernel", release("5.15.0-91-generic"), Warning, []string{"5.15.0-91-generic", "tested from 6.1 on"}},
		{"untested kernel of a new series", release("6.0.12"), Warning, []string{"tested from 6.1 on"}},
		{"seccomp", program(unix.EPERM), Fatal, []string{"SystemCallFilter", "lockdown"}},
		{"no bpf", program(unix.ENOSYS), Fatal, []string{"no bpf system call"}},
		{"no xdp", program(errors.New("odd")), Fatal, []string{"no XDP program", "odd"}},
		{"no bpffs", statfs(unix.Statfs_t{Type: unix.SYSFS_MAGIC}), Fatal, []string{"no bpf filesystem at /sys/fs/bpf/levee", "mount -t bpf bpf /sys/fs/bpf"}},
		{"read-only bpffs", statfs(unix.Statfs_t{Type: unix.BPF_FS_MAGIC, Flags: unix.ST_RDONLY}), Fatal, []string{"read-only", "ProtectKernelTunables"}},
		{"no jit", func(h *host) { h.jit = func() (string, error) { return "0", nil } }, Warning, []string{"sysctl -w net.core.bpf_jit_enable=1"}},
		{"memlock", func(h *host) { h.memlock = func() error { return unix.EPERM } }, Fatal, []string{"LimitMEMLOCK=infinity"}},
		{"no frags", func(h *host) { h.frags = func() bool { return false } }, Warning, []string{"several buffers", "5.18"}},
		{"time namespace", func(h *host) { h.clock = func() (time.Duration, error) { return -time.Hour, nil } }, Fatal,
			[]string{"off the kernel's by -1h0m0s", "run it in the host's time namespace"}},
		{"no v4", func(h *host) { h.v4 = func() bool { return false } }, Note, []string{"version 4"}},
	} {
		h := fine()
		c.but(&h)
		r := probe(DefaultRoot, h)
		if len(r.Findings) != 1 || r.Findings[0].Severity != c.severity {
			t.Errorf("%s: %v", c.name, r.Findings)
			continue
		}
		for _, word := range c.words {
			if !strings.Contains(r.Findings[0].String(), word) {
				t.Errorf("%s: %q is not in: %s", c.name, word, r.Findings[0])
			}
		}
		if err := r.Err(); (err != nil) != (c.severity == Fatal) {
			t.Errorf("%s: error %v", c.name, err)
		}
	}
	h := fine()
	caps(1<<capSysAdmin | 1<<12)(&h)
	if r := probe(DefaultRoot, h); len(r.Findings) != 0 {
		t.Errorf("CAP_SYS_ADMIN of old is enough: %v", r.Findings)
	}
}

// A process in a time namespace of its own learns by how much its clock is off.
func TestTimeNamespace(t *testing.T) {
	if os.Getenv("LEVEE_TEST_CLOCK") != "" {
		offset, err := clockOffset()
		fmt.Println("offset", offset, err)
		return
	}
	needsRoot(t)
	if offset, err := clockOffset(); err != nil || offset != 0 {
		t.Errorf("here: %s, %v", offset, err)
	}
	if _, err := os.Stat("/proc/self/ns/time"); err != nil {
		t.Skip("the kernel has no time namespaces (CONFIG_TIME_NS)")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		lacks(t, "unshare (util-linux), which makes the namespace")
	}
	self, err := os.Executable()
	must(t, err)
	cmd := exec.Command(unshare, "--time", "--monotonic", "86400", "--fork", self, "-test.run=^TestTimeNamespace$")
	cmd.Env = append(os.Environ(), "LEVEE_TEST_CLOCK=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "offset 24h0m0s <nil>") {
		t.Errorf("in a namespace a day ahead: %v\n%s", err, out)
	}
}

func TestProbeThisHost(t *testing.T) {
	if os.Geteuid() != 0 {
		if Probe("").Err() == nil {
			t.Error("an unprivileged process lacks nothing")
		}
	}
	needsRoot(t)
	r := Probe("")
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if r.Kernel == "" {
		t.Error("no kernel")
	}
}

func TestProbeInterface(t *testing.T) {
	l := newLab(t)
	find := func(name, word string) Severity {
		t.Helper()
		r := ProbeInterface(name)
		for _, f := range r.Findings {
			if strings.Contains(f.String(), word) {
				return f.Severity
			}
		}
		t.Errorf("%s: %q is not in %v", name, word, r.Findings)
		return -1
	}
	l.veth("net0", 1500)
	if r := ProbeInterface("net0"); len(r.Findings) != 0 {
		t.Errorf("a veth that is up: %v", r.Findings)
	}
	if find("nowhere0", "no such interface") != Fatal {
		t.Error("a missing interface is not fatal")
	}
	if find("lo", "loopback") != Note || find("lo", "down") != Note {
		t.Error("lo")
	}
	l.setXDP("net0", l.trivial().FD(), xdpFlagsNative)
	if find("net0", "theirs") != Fatal {
		t.Error("a foreign program is not fatal")
	}
	l.setXDP("net0", -1, xdpFlagsNative)
	s := l.open()
	l.attach(s, "net0", ModeAuto)
	if find("net0", "levee is attached, in native mode") != Note {
		t.Error("our own program is more than a note")
	}

	var r Report
	probeDevice(&r, &device{name: "eth9", kind: "vlan", mtu: 9000, up: true, master: 3}, false)
	if len(r.Findings) != 3 {
		t.Errorf("findings %v", r.Findings)
	}
}

func TestProbeQueues(t *testing.T) {
	for _, c := range []struct {
		name, driver string
		channels     channels
		cpus         int
		want         []string
	}{
		{"as many as CPUs", "virtio_net", channels{maxCombined: 4, combined: 4}, 4, nil},
		{"one of four", "virtio_net", channels{maxCombined: 4, combined: 1}, 8, []string{"warning: one of four: it has one receive queue, so one of 8 CPUs works on all that comes in; run: ethtool -L one of four combined 4"}},
		{"more queues than CPUs", "igb", channels{maxRX: 16, rxCount: 1}, 2, []string{"warning: more queues than CPUs: it has one receive queue, so one of 2 CPUs works on all that comes in; run: ethtool -L more queues than CPUs combined 2"}},
		{"one and no more", "virtio_net", channels{maxCombined: 1, combined: 1}, 2, []string{"note: one and no more: it has one receive queue and can't have more, so one of 2 CPUs works on all that comes in"}},
		{"one CPU", "virtio_net", channels{maxCombined: 4, combined: 1}, 1, nil},
		{"all in use", "ena", channels{maxCombined: 8, combined: 8}, 8, []string{"warning: all in use: it uses 8 of 8 queues; its driver refuses native mode unless half are free; run: ethtool -L all in use combined 4"}},
		{"half in use", "ena", channels{maxCombined: 8, combined: 4}, 8, nil},
		{"of another driver", "ice", channels{maxCombined: 8, combined: 8}, 8, nil},
	} {
		var r Report
		probeQueues(&r, c.name, c.driver, c.channels, c.cpus)
		var got []string
		for _, f := range r.Findings {
			got = append(got, f.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", c.name, got)
		}
	}
}

// What the kernel answers is read from the right places: a veth has one queue, and says who it is.
func TestEthtool(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	c, err := queues("net0")
	if have, most := c.receive(); err != nil || have < 1 || most < have {
		t.Errorf("%+v, %v", c, err)
	}
	if name, err := driver("net0"); err != nil || name != "veth" {
		t.Errorf("driver %q, %v", name, err)
	}
	if _, err := queues("nowhere0"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("of no interface: %v", err)
	}
}
