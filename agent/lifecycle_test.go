package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/client"
	"github.com/levee-xdp/levee/agent/state"
	"github.com/levee-xdp/levee/loader"
)

// steppedClock is the system's, whose wall clock was stepped by what stands in a file.
type steppedClock struct {
	state.SystemClock
	path string
}

func (c steppedClock) Now() time.Time {
	text, _ := os.ReadFile(c.path)
	by, _ := time.ParseDuration(string(text))
	return time.Now().Add(by)
}

// shielding is a daemon that shields, and a source that is banned and sends.
func shielding(t *testing.T) (*lab, *wire) {
	l := newLab(t)
	l.write("interfaces: [shielded]\n")
	l.start()
	w := l.wire("ipv4")
	w.open("before")
	l.banned(w, "1h")
	w.blocked("banned")
	return l, w
}

func (l *lab) banned(w *wire, length string) state.BanResult {
	l.Helper()
	r, err := l.Ban(l.Context(), state.BanRequest{Bans: []state.BanItem{{Prefix: w.source.String(), Origin: "operator", For: length}}})
	if err != nil || r.Done != 1 {
		l.Fatalf("%+v, %v", r, err)
	}
	return r.Bans[0]
}

// refuses starts a daemon that has to end by itself, with exit code 1 and these words.
func (l *lab) refuses(before string, words ...string) {
	l.Helper()
	self, err := os.Executable()
	if err != nil {
		l.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+l.host, "unshare", "--mount", "sh", "-c", before+`exec "$0"`, self)
	cmd.Env = append(os.Environ(), "LEVEE_TEST_DAEMON="+filepath.Join(l.dir, "levee.yaml"))
	time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
	out, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != 1 {
		l.Errorf("exit code %d", code)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			l.Errorf("%q is not in: %s", word, out)
		}
	}
}

func (l *lab) health(want string, words ...string) {
	l.Helper()
	var h state.Health
	l.await("health is "+want, func() bool {
		o, err := l.Status(l.Context(), 0)
		h = o.Health
		return err == nil && h.State == want
	})
	for _, word := range words {
		if !strings.Contains(strings.Join(h.Problems, "; "), word) {
			l.Errorf("%q is not in: %q", word, h.Problems)
		}
	}
}

// disk puts the state on a filesystem of its own, of so many bytes.
func (l *lab) disk(bytes int) string {
	l.Helper()
	dir := filepath.Join(l.dir, "disk")
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	text, err := os.ReadFile(filepath.Join(l.dir, "levee.yaml"))
	if err != nil {
		l.Fatal(err)
	}
	moved := strings.Replace(string(text), l.dir+"/state.db", dir+"/state.db", 1)
	if err := os.WriteFile(filepath.Join(l.dir, "levee.yaml"), []byte(moved), 0o600); err != nil {
		l.Fatal(err)
	}
	return dir
}

// fillUp writes to a filesystem until nothing more fits.
func (l *lab) fillUp(dir string) string {
	l.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		l.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		l.Fatal(err)
	}
	return path
}

func TestSecondDaemon(t *testing.T) {
	l, w := shielding(t)
	l.refuses("", fmt.Sprintf("process %d (", l.daemon.Process.Pid), "holds it since 20", "stop that one first")
	w.blocked("after a second daemon was refused")
	l.banned(w, "2h") // the first goes on
	l.health("ok")
}

// After a reboot nothing is pinned, and the state is there.
func TestReboot(t *testing.T) {
	l, w := shielding(t)
	l.kill()
	if _, err := loader.Remove(l.root); err != nil {
		t.Fatal(err)
	}
	w.open("nothing is pinned")
	l.start()
	w.blocked("after the start")
	l.health("ok")
}

func TestNoBPFFS(t *testing.T) {
	l, w := shielding(t)
	l.kill()
	l.refuses("umount -l /sys/fs/bpf && ", "this host can't run Levee", "there is no bpf filesystem at", "run: mount -t bpf bpf /sys/fs/bpf")
	l.refuses("mount -o remount,bind,ro /sys/fs/bpf && ", "is read-only here", "ReadWritePaths=/sys/fs/bpf")
	w.blocked("after starts that failed")
	l.start()
	w.blocked("after one that did not")
}

func TestDiskFull(t *testing.T) {
	l := newLab(t)
	l.write("interfaces: [shielded]\n")
	dir := l.disk(256 << 10)
	l.start()
	w := l.wire("ipv4")
	w.open("before")
	l.banned(w, "1h")
	ballast := l.fillUp(dir)
	ctx := t.Context()
	var refused netip.Prefix
	for i := 0; i < 100 && !refused.IsValid(); i++ {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i), 1}), 32)
		_, err := l.Ban(ctx, state.BanRequest{Bans: []state.BanItem{{Prefix: p.String(), Origin: "operator", Reason: strings.Repeat("why ", 60)}}})
		var e *client.Error
		switch {
		case err == nil: // it found room in the file
		case !errors.As(err, &e) || e.Status != 507 || e.Code != state.CodeStorage || !strings.Contains(e.Detail, "no space left on device") ||
			!strings.Contains(e.Detail, "nothing was changed") || !strings.Contains(e.Detail, "make room on its filesystem"):
			t.Fatalf("%v", err)
		default:
			refused = p
		}
	}
	if !refused.IsValid() {
		t.Fatal("the disk never got full")
	}
	if c, err := l.Check(ctx, refused.Addr()); err != nil || c.Kernel != nil || len(c.Claims) != 0 {
		t.Errorf("what was refused is in force: %+v, %v", c, err)
	}
	l.health("degraded", "the last change could not be written", "no space left on device")
	w.blocked("with the disk full")
	l.kill()
	w.blocked("with the disk full, killed")
	l.start() // reading takes no room
	w.blocked("with the disk full, started again")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	l.banned(w, "2h")
	l.health("ok")
	l.terminate()

	// There is no room for a state at all.
	if err := os.Rename(filepath.Join(dir, "state.db"), filepath.Join(l.dir, "kept.db")); err == nil {
		t.Fatal("that is one filesystem")
	}
	if err := os.Remove(filepath.Join(dir, "state.db")); err != nil {
		t.Fatal(err)
	}
	l.fillUp(dir)
	l.refuses("", "begin state", "no space left on device", "make room on its filesystem")
	w.blocked("after a start that failed")
}

func TestReadOnlyState(t *testing.T) {
	l := newLab(t)
	l.write("interfaces: [shielded]\n")
	dir := l.disk(1 << 20)
	l.start()
	w := l.wire("ipv4")
	w.open("before")
	l.banned(w, "1h")
	l.kill()
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	l.refuses("", "open the state", "read-only file system", "mount it writable again")
	w.blocked("after a start that failed")
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	l.start()
	w.blocked("after one that did not")
	l.health("ok")
}

// The wall clock is stepped by a day, to and fro: bans last as long as they were made for.
func TestClockStep(t *testing.T) {
	l := newLab(t)
	clock := filepath.Join(l.dir, "clock")
	t.Setenv("LEVEE_TEST_CLOCK", clock)
	l.write("interfaces: [shielded]\n")
	l.start()
	w := l.wire("ipv4")
	w.open("before")
	for _, by := range []time.Duration{24 * time.Hour, -24 * time.Hour, 0} {
		l.banned(w, "1h")
		if err := os.WriteFile(clock, []byte(by.String()), 0o600); err != nil {
			t.Fatal(err)
		}
		w.blocked("after a step to " + by.String())
		l.kill()
		w.blocked("and with the daemon dead")
		l.start()
		w.blocked("and after a restart")
		c, err := l.Check(t.Context(), w.source)
		if err != nil || len(c.Claims) != 1 {
			t.Fatalf("%+v, %v", c, err)
		}
		if left := c.Claims[0].Expires.Sub(time.Now().Add(by)); left > time.Hour || left < 58*time.Minute {
			t.Errorf("after a step to %s it lasts another %s", by, left)
		}
		answer := l.banned(w, "2s")
		if err := os.WriteFile(clock, []byte((by + time.Hour).String()), 0o600); err != nil {
			t.Fatal(err)
		}
		w.blocked("before its time, though the wall clock is past it")
		w.open("after its time")
		if early := answer.Expires.Sub(time.Now().Add(by)); early > 0 {
			t.Errorf("it ended %s too early", early)
		}
		if err := os.WriteFile(clock, []byte(by.String()), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// An interface that is renamed keeps its shield; one that goes and comes back gets it again.
func TestInterfaceComesAndGoes(t *testing.T) {
	l, w := shielding(t)
	rename := func(from, to string) {
		l.in(l.host, func() error {
			link, err := netlink.LinkByName(from)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetDown(link), netlink.LinkSetName(link, to), netlink.LinkSetUp(link))
		})
	}
	attached := func(name string) func() bool {
		return func() bool {
			list, err := l.Interfaces(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range list.Interfaces {
				if i.Name == name {
					return i.Attached
				}
			}
			return false
		}
	}
	rename("shielded", "eth7")
	l.await("eth7 is told as shielded", attached("eth7"))
	w.blocked("renamed")
	l.health("degraded", "shielded is not shielded")
	l.kill()
	rename("eth7", "shielded")
	w.blocked("renamed back with the daemon dead")
	l.start()
	l.await("it is told as shielded", attached("shielded"))
	w.blocked("and followed")
	l.health("ok")

	l.in(l.host, func() error {
		link, err := netlink.LinkByName("shielded")
		if err != nil {
			return err
		}
		return netlink.LinkDel(link)
	})
	l.health("degraded", "shielded is not shielded: there is no such interface")
	l.in(l.peer, func() error {
		host, err := netns.GetFromName(l.host)
		if err != nil {
			return err
		}
		defer host.Close()
		pair := netlink.NewVeth(netlink.LinkAttrs{Name: "outside"})
		pair.PeerName, pair.PeerNamespace = "shielded", netlink.NsFd(host)
		return errors.Join(netlink.LinkAdd(pair), addresses("outside", 2))
	})
	l.in(l.host, func() error { return addresses("shielded", 1) })
	l.await("it is shielded again", attached("shielded"))
	w.blocked("it came back")
	l.health("ok")
	if r, err := l.Unban(t.Context(), state.UnbanRequest{Prefixes: []string{w.source.String()}, Origin: "operator"}); err != nil || r.Done != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	w.open("unbanned")
}
