package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Severity says how much a finding matters.
type Severity int

// The severities.
const (
	Note    Severity = iota // good to know
	Warning                 // it works, but slower or in part
	Fatal                   // it does not work
)

// String returns the severity's word.
func (s Severity) String() string {
	switch s {
	case Note:
		return "note"
	case Warning:
		return "warning"
	case Fatal:
		return "fatal"
	}
	return fmt.Sprintf("severity_%d", int(s))
}

// Finding is one thing about the host that Levee needs or would like otherwise.
type Finding struct {
	Severity Severity
	Subject  string // a word: privileges, kernel, bpffs, …
	Message  string // what is the matter
	Advice   string // what to do about it; empty if there is nothing to do
}

// String is the finding on one line.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: %s: %s", f.Severity, f.Subject, f.Message)
	if f.Advice != "" {
		s += "; " + f.Advice
	}
	return s
}

// Report is what Probe or ProbeInterface found.
type Report struct {
	Kernel   string // its release; empty for an interface
	Findings []Finding
}

// Err joins the fatal findings; nil if there are none.
func (r Report) Err() error {
	var errs []error
	for _, f := range r.Findings {
		if f.Severity == Fatal {
			errs = append(errs, errors.New(strings.TrimPrefix(f.String(), "fatal: ")))
		}
	}
	return errors.Join(errs...)
}

func (r *Report) add(s Severity, subject, message, advice string) {
	r.Findings = append(r.Findings, Finding{s, subject, message, advice})
}

// host is what Probe asks of the system.
type host struct {
	capabilities func() (effective uint64, err error)
	release      func() (string, error)
	statfs       func(path string) (unix.Statfs_t, error)
	program      func() error // loads an XDP program
	jit          func() (string, error)
	memlock      func() error
	frags        func() bool
	v4           func() bool
	clock        func() (time.Duration, error) // by which CLOCK_MONOTONIC here is ahead of the kernel's
}

// Probe says what this host lacks to run Levee under the default root, or under root if it is not
// empty. It changes nothing.
func Probe(root string) Report {
	return probe(rootPins(root).root, host{
		capabilities: effectiveCapabilities,
		release:      kernelRelease,
		statfs: func(path string) (st unix.Statfs_t, err error) {
			err = unix.Statfs(path, &st)
			return st, err
		},
		program: func() error { return features.HaveProgramType(ebpf.XDP) },
		jit: func() (string, error) {
			b, err := os.ReadFile("/proc/sys/net/core/bpf_jit_enable")
			return strings.TrimSpace(string(b)), err
		},
		memlock: rlimit.RemoveMemlock,
		frags:   haveFrags,
		v4:      haveV4,
		clock:   clockOffset,
	})
}

func probe(root string, h host) Report {
	var r Report
	probeKernel(&r, h)
	probeClock(&r, h)
	allowed := probePrivileges(&r, h)
	if allowed {
		probeBPF(&r, h)
	}
	probeBPFFS(&r, root, h)
	return r
}

func probeKernel(r *Report, h host) {
	release, err := h.release()
	r.Kernel = release
	if err != nil {
		r.add(Warning, "kernel", "its release can't be read: "+err.Error(), "")
		return
	}
	switch major, minor := kernelVersion(release); {
	case major < 5 || major == 5 && minor < 15:
		r.add(Fatal, "kernel", fmt.Sprintf("this is %s; Levee needs 5.15", release), "upgrade the kernel")
	case major < 6 || major == 6 && minor < 1:
		r.add(Warning, "kernel", fmt.Sprintf("this is %s; it should do, but Levee is tested from 6.1 on", release), "upgrade the kernel, or try it where it matters little")
	}
}

// probeClock looks for a time namespace: the program ends bans by the kernel's clock, so a process that
// sees another one would have them end too early or too late.
func probeClock(r *Report, h host) {
	switch offset, err := h.clock(); {
	case err != nil:
		r.add(Warning, "clock", "whether this is a time namespace can't be read: "+err.Error(), "")
	case offset != 0:
		r.add(Fatal, "clock", fmt.Sprintf("this process is in a time namespace whose CLOCK_MONOTONIC is off the kernel's by %s, so bans would not end on time", offset),
			"run it in the host's time namespace")
	}
}

// clockOffset reads the offset of this process's time namespace (time_namespaces(7)); it is 0 where the
// kernel has none.
func clockOffset() (time.Duration, error) {
	b, err := os.ReadFile("/proc/self/timens_offsets")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var name string
		var seconds, nanoseconds int64
		if n, _ := fmt.Sscan(line, &name, &seconds, &nanoseconds); n == 3 && name == "monotonic" {
			return time.Duration(seconds)*time.Second + time.Duration(nanoseconds), nil
		}
	}
	return 0, nil
}

// capabilities that Levee needs; linux/capability.h. Reading packets by pointers needs CAP_PERFMON.
var needed = []struct {
	bit  uint
	name string
	why  string
}{
	{39, "CAP_BPF", "to load programs and maps"},
	{12, "CAP_NET_ADMIN", "to attach to interfaces"},
	{38, "CAP_PERFMON", "to let programs read packets"},
}

const capSysAdmin = 21 // stands in for CAP_BPF and CAP_PERFMON

func probePrivileges(r *Report, h host) bool {
	caps, err := h.capabilities()
	if err != nil {
		r.add(Warning, "privileges", "they can't be read: "+err.Error(), "")
		return true
	}
	var missing []string
	for _, c := range needed {
		if caps&(1<<c.bit) == 0 && (c.name == "CAP_NET_ADMIN" || caps&(1<<capSysAdmin) == 0) {
			missing = append(missing, c.name+" "+c.why)
		}
	}
	if len(missing) == 0 {
		return true
	}
	r.add(Fatal, "privileges", "this process lacks "+strings.Join(missing, ", "),
		"run it as root, or give it AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON in its systemd unit")
	return false
}

func probeBPF(r *Report, h host) {
	switch err := h.program(); {
	case errors.Is(err, unix.EPERM):
		r.add(Fatal, "bpf", "the kernel does not let this process load programs, its capabilities notwithstanding",
			"look for a seccomp filter (systemd: SystemCallFilter=bpf must be allowed), a container, or kernel lockdown")
		return
	case errors.Is(err, unix.ENOSYS):
		r.add(Fatal, "bpf", "the kernel has no bpf system call", "take one with CONFIG_BPF_SYSCALL=y")
		return
	case err != nil:
		r.add(Fatal, "bpf", "the kernel takes no XDP program: "+err.Error(), "")
		return
	}
	if err := h.memlock(); err != nil {
		r.add(Fatal, "memory", "the limit of locked memory can't be raised: "+err.Error(),
			"set LimitMEMLOCK=infinity in the systemd unit, or add CAP_SYS_RESOURCE")
	}
	switch jit, err := h.jit(); {
	case err != nil: // a kernel with CONFIG_BPF_JIT_ALWAYS_ON may hide it
	case jit == "0":
		r.add(Warning, "jit", "programs are interpreted, about four times slower", "run: sysctl -w net.core.bpf_jit_enable=1")
	}
	if !h.frags() {
		r.add(Warning, "buffers", "XDP sees no packets of several buffers (kernel 5.18): with a large MTU native mode may be refused",
			"upgrade the kernel if the MTU is above 3500")
	}
	if !h.v4() {
		r.add(Note, "cpu", "the kernel has no BPF instructions of version 4 (6.6); the program does without", "")
	}
}

func probeBPFFS(r *Report, root string, h host) {
	dir := filepath.Clean(root)
	st, err := h.statfs(dir)
	for errors.Is(err, unix.ENOENT) && dir != "/" {
		dir = filepath.Dir(dir)
		st, err = h.statfs(dir)
	}
	switch {
	case err != nil:
		r.add(Fatal, "bpffs", fmt.Sprintf("%s can't be looked at: %v", dir, err), "")
	case st.Type != unix.BPF_FS_MAGIC:
		r.add(Fatal, "bpffs", fmt.Sprintf("there is no bpf filesystem at %s", root), "run: mount -t bpf bpf /sys/fs/bpf")
	case st.Flags&unix.ST_RDONLY != 0:
		r.add(Fatal, "bpffs", fmt.Sprintf("the bpf filesystem at %s is read-only here", dir),
			"in a systemd unit: ProtectKernelTunables=no, or ReadWritePaths=/sys/fs/bpf")
	}
}

// ProbeInterface says beforehand what stands in the way of attaching to an interface, and in which
// mode it will be. It changes nothing.
func ProbeInterface(name string) Report {
	var r Report
	dev, err := deviceByName(name)
	if err != nil {
		r.add(Fatal, name, err.Error(), "")
		return r
	}
	probeDevice(&r, dev, haveFrags())
	return r
}

func probeDevice(r *Report, dev *device, frags bool) {
	if dev.attached != 0 {
		theirs := foreign(dev)
		var f *ForeignError
		if errors.As(theirs, &f) && f.Program == "levee" {
			r.add(Note, dev.name, fmt.Sprintf("levee is attached, in %s mode", f.Mode), "")
		} else {
			r.add(Fatal, dev.name, theirs.Error(), "")
		}
	}
	if words, ok := virtual[dev.kind]; ok {
		r.add(Warning, dev.name, words, "attach to the interface below, if packets come in by it")
	}
	switch {
	case dev.loopback:
		r.add(Note, dev.name, "the loopback interface has no native mode", "")
	case dev.kind == "bond":
		r.add(Note, dev.name, "a bond has native mode only if all its members' drivers have it", "")
	}
	if dev.mtu > 3498 && !frags && !dev.loopback { // a page less headroom and the skb's tail
		r.add(Warning, dev.name, fmt.Sprintf("the MTU %d is too large for most drivers' native mode on this kernel", dev.mtu),
			"set it to 3498 or less, or upgrade the kernel to 5.18")
	}
	if dev.master != 0 {
		r.add(Note, dev.name, "it is a port of a bridge or a member of a bond: a program here sees the packets of all behind it", "")
	}
	if !dev.up {
		r.add(Note, dev.name, "it is down", "")
	}
	if c, err := queues(dev.name); err == nil && dev.kind == "device" {
		name, _ := driver(dev.name) // empty: it does not tell
		probeQueues(r, dev.name, name, c, runtime.NumCPU())
	}
	if on, err := largeReceiveOffload(dev.name); err == nil && on {
		r.add(Warning, dev.name, "large receive offload (LRO) is on; most drivers refuse native mode with it",
			fmt.Sprintf("run: ethtool -K %s lro off", dev.name))
	}
}

// probeQueues looks at an interface's queues: each is worked on by one CPU, and some drivers want as many
// again for native mode.
func probeQueues(r *Report, name, driver string, c channels, cpus int) {
	have, most := c.receive()
	if driver == "ena" && int(c.combined) > int(c.maxCombined)/2 {
		r.add(Warning, name, fmt.Sprintf("it uses %d of %d queues; its driver refuses native mode unless half are free", c.combined, c.maxCombined),
			fmt.Sprintf("run: ethtool -L %s combined %d", name, max(1, c.maxCombined/2)))
	}
	switch {
	case have != 1 || cpus == 1:
	case most > 1:
		r.add(Warning, name, fmt.Sprintf("it has one receive queue, so one of %d CPUs works on all that comes in", cpus),
			fmt.Sprintf("run: ethtool -L %s combined %d", name, min(most, cpus)))
	default:
		r.add(Note, name, fmt.Sprintf("it has one receive queue and can't have more, so one of %d CPUs works on all that comes in", cpus), "")
	}
}

func effectiveCapabilities() (uint64, error) {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in /proc/thread-self/status")
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

// kernelVersion reads the first two numbers of a release like 6.1.0-18-amd64.
func kernelVersion(release string) (major, minor int) {
	_, _ = fmt.Sscanf(release, "%d.%d", &major, &minor) // what is no number is version 0
	return major, minor
}
