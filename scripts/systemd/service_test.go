package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const (
	repository = "../.."
	banned     = "198.51.100.7"
)

// link makes the interface that is shielded, before the network is configured, as udev would.
const linkUnit = `
[Unit]
DefaultDependencies=no
Before=levee.service network-pre.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/sbin/ip link add eth1 address 02:00:00:00:00:01 type veth peer name far1 address 02:00:00:00:00:02
ExecStart=/sbin/ip link set far1 up
ExecStart=/sbin/ip link set eth1 up
ExecStart=/sbin/ip address add 192.0.2.1/24 dev eth1
[Install]
WantedBy=sysinit.target
`

// network stands for what configures the network, and notes what it finds.
const networkUnit = `
[Unit]
DefaultDependencies=no
After=network-pre.target
Before=network.target
Wants=network-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ip -details link show eth1 >/run/network-found; touch /run/network-came'
[Install]
WantedBy=multi-user.target
`

// strict has a system call that the filter refuses end the daemon, which nobody overlooks.
const strict = `
[Service]
SystemCallErrorNumber=kill
`

// The life of a package: one long story, since each part begins where the one before ended.
func TestService(t *testing.T) {
	bare(t)
	debs := [2]string{build(t, "1.0.0~test1"), build(t, "1.0.0~test2")}
	c := newContainer(t)
	c.write("etc/systemd/system/link.service", linkUnit)
	c.write("etc/systemd/system/network.service", networkUnit)
	c.write("etc/systemd/system/levee.service.d/strict.conf", strict)
	for i, deb := range debs {
		text, err := os.ReadFile(deb)
		check(t, err)
		c.write(fmt.Sprintf("srv/levee%d.deb", i+1), string(text))
	}
	run(t, time.Minute, "systemctl", "--root="+c.root, "enable", "link.service", "network.service")
	c.boot()
	c.must("test -e /run/network-came")

	c.must("dpkg -i /srv/levee1.deb")
	c.want("systemctl is-active levee", "active")
	c.want("systemctl is-enabled levee", "enabled")
	c.want("systemctl is-enabled levee.socket", "disabled")
	if out := c.must("levee version"); !strings.Contains(out, "test1") {
		t.Errorf("the version is %s", out)
	}
	c.want("stat -c '%a %U:%G' /etc/levee/levee.yaml", "640 root:levee")
	c.want("stat -c '%a %U:%G' /sys/fs/bpf", "1700 root:root")
	privileges(c)

	t.Log("attached and used")
	c.must("levee attach eth1")
	f := startFlood(t, c.pid, "eth1", "far1", banned)
	defer func() { f.stop() }()
	f.wantPassing("before the ban")
	c.must("levee ban 198.51.100.0/24 --for 1h --reason 'credential stuffing'")
	f.heard()
	f.wantDropped("banned")
	if out := c.must("levee -o json check " + banned); !strings.Contains(out, "credential stuffing") {
		t.Errorf("levee check does not know why: %s", out)
	}
	if dropped := metric(c, `levee_packets_total{.*reason="banned"`); dropped < 1000 {
		t.Errorf("metrics say that %v packets were dropped as banned", dropped)
	}

	t.Log("upgraded under flood, to a version with another program")
	c.must("sed -i 's/^  martians: true/  martians: false/' /etc/levee/levee.yaml && grep -q 'martians: false' /etc/levee/levee.yaml")
	before, program := c.must("systemctl show -P MainPID levee"), xdp(c)
	c.must("dpkg -i /srv/levee2.deb")
	c.within(20*time.Second, "the new daemon", func() bool {
		now, _ := c.try("systemctl show -P MainPID levee")
		return strings.TrimSpace(now) != before && strings.TrimSpace(now) != "0"
	})
	if out := c.must("levee version"); !strings.Contains(out, "test2") {
		t.Errorf("after the upgrade the version is %s", out)
	}
	f.wantDropped("upgraded")
	if now := xdp(c); now == program {
		t.Errorf("the upgrade left program %s in place, another was to take over: the test shows nothing", now)
	}
	c.want("grep -c 'martians: false' /etc/levee/levee.yaml", "1")

	t.Log("reloaded")
	reload(c)
	f.wantDropped("reloaded")

	t.Log("killed")
	before = c.must("systemctl show -P MainPID levee")
	c.must("kill -9 " + before)
	running(c, before)
	f.wantDropped("killed")

	t.Log("hangs, and the watchdog sees it")
	watchdog(c)
	f.wantDropped("hung")

	t.Log("stopped and started")
	c.must("systemctl stop levee")
	f.wantDropped("stopped")
	c.must("levee detach --all")
	f.wantPassing("detached without a daemon")
	c.must("systemctl start levee")
	f.heard()
	f.wantDropped("started again")
	c.must("levee panic on && levee panic off")
	f.heard()
	f.wantDropped("panic was off again")

	security(c)
	quiet(c)

	t.Log("rebooted")
	f.stop()
	c.halt(syscall.SIGKILL)
	c.boot()
	if out := c.must("cat /run/network-found"); !strings.Contains(out, "prog/xdp") {
		t.Errorf("when the network came, the shield was not up: %s", out)
	}
	f = startFlood(t, c.pid, "eth1", "far1", banned)
	f.wantDropped("rebooted")
	quiet(c)

	t.Log("with its socket in systemd's hands")
	c.must("systemctl stop levee && systemctl enable --now levee.socket")
	socket(c)
	f.wantDropped("with a socket of systemd's")
	c.must("dpkg -i /srv/levee1.deb") // the way back, and the socket is kept
	c.want("systemctl is-enabled levee.socket", "enabled")
	socket(c)
	f.wantDropped("the way back")
	quiet(c)

	t.Log("boots though the daemon never gets ready")
	f.stop()
	c.write("etc/systemd/system/levee.service.d/hang.conf", "[Service]\nExecStart=\nExecStart=/usr/bin/sleep infinity\nTimeoutStartSec=3s\n")
	c.halt(syscall.SIGKILL)
	c.boot()
	c.must("test -e /run/network-came")
	c.want("systemctl is-active multi-user.target", "active")
	check(t, os.Remove(filepath.Join(c.root, "etc/systemd/system/levee.service.d/hang.conf")))
	c.must("systemctl daemon-reload && systemctl restart levee")
	f = startFlood(t, c.pid, "eth1", "far1", banned)
	f.wantDropped("restarted")

	t.Log("removed and purged")
	c.must("dpkg --remove levee")
	f.wantPassing("removed")
	if now := xdp(c); now != "" {
		t.Errorf("program %s is left on eth1", now)
	}
	c.want("find /sys/fs/bpf -mindepth 1 ! -name '*.debug' | wc -l", "0") // those are the kernel's own
	c.want("systemctl is-active levee levee.socket", "inactive\ninactive")
	c.must("test -e /etc/levee/levee.yaml && test -e /var/lib/levee/state.db")
	c.must("dpkg -i /srv/levee1.deb")
	c.want("systemctl is-active levee", "active")
	c.want("systemctl is-enabled levee", "enabled")
	f.heard()
	f.wantDropped("installed again")
	c.must("dpkg --remove levee")
	f.wantPassing("removed again")
	c.must("dpkg --purge levee")
	c.want("systemctl list-unit-files --no-legend 'levee*' | wc -l", "0")
	c.want("find /etc/systemd -name 'levee.service' -o -name 'levee.socket' -o -name '*levee*.wants' | wc -l", "0")
	c.want("find /etc/levee /var/lib/levee /var/cache/levee /var/log/levee /run/levee 2>/dev/null | wc -l", "0")
}

// build makes a deb of a version.
func build(t *testing.T, version string) string {
	t.Helper()
	dist := t.TempDir()
	cmd := exec.Command("scripts/package")
	cmd.Dir = repository
	cmd.Env = append(os.Environ(), "PACKAGE_VERSION="+version, "PACKAGE_FORMATS=deb", "DIST="+dist)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a package: %v\n%s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dist, "*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("build a package: it made %v", debs)
	}
	return debs[0]
}

// privileges wants the daemon to have what it needs and no more.
func privileges(c *container) {
	c.Helper()
	status := c.must("cat /proc/$(systemctl show -P MainPID levee)/status")
	uid := c.must("id -u levee")
	const capabilities = 1<<39 | 1<<12 | 1<<38 // CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON
	for _, want := range []string{
		fmt.Sprintf("Uid:\t%s\t%s\t%s\t%s", uid, uid, uid, uid),
		fmt.Sprintf("CapEff:\t%016x", capabilities),
		fmt.Sprintf("CapBnd:\t%016x", capabilities),
		"NoNewPrivs:\t1",
		"Seccomp:\t2",
	} {
		if !strings.Contains(status, want+"\n") {
			c.Errorf("the daemon's status lacks %q:\n%s", want, status)
		}
	}
	if uid == "0" {
		c.Error("the daemon is root")
	}
}

// reload wants a good file to be taken, and a bad one to be refused aloud and change nothing.
func reload(c *container) {
	c.Helper()
	pid := c.must("systemctl show -P MainPID levee")
	c.must(`printf 'allow:\n  - 203.0.113.9\n' >>/etc/levee/levee.yaml && systemctl reload levee`)
	if out := c.must("levee allow list"); !strings.Contains(out, "203.0.113.9") {
		c.Errorf("the reload did not take what was added: %s", out)
	}
	c.must("cp /etc/levee/levee.yaml /root/good.yaml && echo 'nonsense: 1' >>/etc/levee/levee.yaml")
	if out, err := c.try("systemctl reload levee"); err == nil {
		c.Errorf("a bad file was reloaded without a word: %s", out)
	}
	c.want("systemctl is-active levee", "active")
	c.must("cat /root/good.yaml >/etc/levee/levee.yaml && systemctl reload levee")
	c.want("systemctl show -P MainPID levee", pid)
}

// running waits until the service runs in another process than before.
func running(c *container, before string) {
	c.Helper()
	c.within(30*time.Second, "another daemon", func() bool {
		pid, _ := c.try("systemctl show -P MainPID levee")
		state, _ := c.try("systemctl is-active levee")
		pid = strings.TrimSpace(pid)
		return pid != before && pid != "0" && strings.TrimSpace(state) == "active"
	})
}

// watchdog stops the daemon's process, and wants systemd to put another in its place.
func watchdog(c *container) {
	c.Helper()
	c.write("etc/systemd/system/levee.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
	c.must("systemctl daemon-reload && systemctl restart levee")
	before := c.must("systemctl show -P MainPID levee")
	c.must("kill -STOP " + before)
	running(c, before)
	if log := c.must("journalctl --no-pager -o cat -u levee"); !strings.Contains(log, "Watchdog timeout") {
		c.Errorf("the watchdog did not end the process:\n%s", log)
	}
	check(c.T, os.Remove(filepath.Join(c.root, "etc/systemd/system/levee.service.d/watchdog.conf")))
	c.must("systemctl daemon-reload && systemctl restart levee")
}

// socket wants the daemon to be started by a command, commands to wait while it restarts, and the socket
// to let in whom the daemon's own does.
func socket(c *container) {
	c.Helper()
	c.must("systemctl stop levee")
	c.want("stat -c '%a %U:%G %F' /run/levee/levee.sock", "660 levee:levee socket")
	c.must("levee status")
	c.want("systemctl is-active levee", "active")
	before := c.must("systemctl show -P MainPID levee")
	c.must("systemctl restart --no-block levee; levee status && levee status")
	running(c, before)
	c.want("stat -c '%a %U:%G %F' /run/levee/levee.sock", "660 levee:levee socket")
	c.must("setpriv --reuid=nobody --regid=levee --clear-groups levee status")
	if out, err := c.try("setpriv --reuid=nobody --regid=nogroup --clear-groups levee status"); err == nil {
		c.Errorf("nobody was let in: %s", out)
	}
}

var exposure = regexp.MustCompile(`Overall exposure level for levee.service: ([0-9.]+)`)

// security wants systemd's own figure for how much the service could do to the host to be low.
func security(c *container) {
	c.Helper()
	out := c.must("systemd-analyze security --no-pager levee.service")
	m := exposure.FindStringSubmatch(out)
	if m == nil {
		c.Fatalf("systemd-analyze gives no figure:\n%s", out)
	}
	level, err := strconv.ParseFloat(m[1], 64)
	if err != nil || level > 2.0 {
		c.Errorf("the exposure is %s, and may be 2.0:\n%s", m[1], out)
	}
	c.Logf("systemd-analyze security: %s", m[1])
}

var denial = regexp.MustCompile(`(?i)denied|not permitted|read-only file system|status=31/SYS|code=dumped.*SYS|NAMESPACE`)

// quiet wants the log to have no denial.
func quiet(c *container) {
	c.Helper()
	for line := range strings.Lines(c.must("journalctl --no-pager -o cat -b -u levee")) {
		if denial.MatchString(line) {
			c.Errorf("a denial in the log: %s", line)
		}
	}
}

var program = regexp.MustCompile(`prog/xdp[a-z]* id (\d+)`)

// xdp returns the number of the program on eth1, or nothing.
func xdp(c *container) string {
	c.Helper()
	if m := program.FindStringSubmatch(c.must("ip -details link show eth1")); m != nil {
		return m[1]
	}
	return ""
}

// metric sums the series whose lines begin with what a pattern describes.
func metric(c *container, pattern string) (sum float64) {
	c.Helper()
	out := c.must(`bash -c 'exec 3<>/dev/tcp/127.0.0.1/9464; printf "GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:9464\r\n\r\n" >&3; cat <&3'`)
	found := regexp.MustCompile(`(?m)^`+pattern+`.* ([0-9.e+]+)\r?$`).FindAllStringSubmatch(out, -1)
	if len(found) == 0 {
		c.Errorf("no metric is like %s:\n%s", pattern, out)
	}
	for _, m := range found {
		v, err := strconv.ParseFloat(m[1], 64)
		check(c.T, err)
		sum += v
	}
	return sum
}
