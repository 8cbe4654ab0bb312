package protect

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const login = "# This is private data. Do not parse.\nUID=0\nUSER=root\nACTIVE=1\nSTATE=active\nREMOTE=1\nTYPE=tty\nCLASS=user\nREMOTE_HOST=198.51.100.9\nSERVICE=sshd\n"

func TestLogins(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"1": login,
		"2": "REMOTE=1\nREMOTE_HOST=2001:db8::9\nSERVICE=sshd\nSTATE=online\n",
		"3": "REMOTE=1\nREMOTE_HOST=host.example\nSERVICE=sshd\nSTATE=active\n",
		"4": "REMOTE=1\nREMOTE_HOST=192.0.2.4\nSERVICE=sshd\nSTATE=closing\n",
		"5": "REMOTE=1\nREMOTE_HOST=192.0.2.5\nSERVICE=cockpit\nSTATE=active\n",
		"6": "REMOTE=0\nSERVICE=login\nSTATE=active\n",
		"7": "REMOTE=1\nREMOTE_HOST=127.0.0.1\nSERVICE=sshd\nSTATE=active\n",
		"8": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := logins(dir)
	if err != nil || fmt.Sprint(found) != "[{198.51.100.9/32 the peer of a live SSH session} {2001:db8::9/128 the peer of a live SSH session}]" {
		t.Errorf("%v, %v", found, err)
	}
	if found, err := logins(filepath.Join(dir, "none")); err != nil || found != nil {
		t.Errorf("without logind: %v, %v", found, err)
	}
}

func FuzzRemoteLogin(f *testing.F) {
	f.Add([]byte(login))
	f.Add([]byte("REMOTE=1\nREMOTE_HOST=\"::1%x\"\nSERVICE=sshd\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if a, ok := remoteLogin(text); ok && (!a.IsValid() || a.IsLoopback() || a.Zone() != "") {
			t.Errorf("%s", a)
		}
	})
}

// pretend makes a process in a directory that stands in for /proc.
func pretend(t *testing.T, proc string, pid int, comm string, parent, uid int, audit string, inodes ...int) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(pid))
	if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"comm":      comm + "\n",
		"status":    fmt.Sprintf("Name:\t%s\nPPid:\t%d\nUid:\t%d\t%d\t%d\t%d\n", comm, parent, 0, uid, uid, uid),
		"sessionid": audit,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for fd, inode := range inodes {
		if err := os.Symlink(fmt.Sprintf("socket:[%d]", inode), filepath.Join(dir, "fd", fmt.Sprint(fd))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/dev/null", filepath.Join(dir, "fd", "99")); err != nil {
		t.Fatal(err)
	}
	runs(t, proc, pid, "/usr/sbin/"+comm)
}

// runs says which program a process runs.
func runs(t *testing.T, proc string, pid int, exe string) {
	t.Helper()
	link := filepath.Join(proc, fmt.Sprint(pid), "exe")
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
}

// Who has not logged in has nobody who vouches for him, whatever he opens.
func TestProcesses(t *testing.T) {
	const privsep = 105
	for name, tt := range map[string]struct {
		pretend func(proc string)
		vouched []uint32
	}{
		"before the login": {func(proc string) {
			pretend(t, proc, 10, "sshd", 1, 0, noAudit, 100)
			pretend(t, proc, 11, "sshd", 10, 0, noAudit, 200)
			pretend(t, proc, 12, "sshd", 11, privsep, noAudit, 200)
		}, nil},
		"a user": {func(proc string) {
			pretend(t, proc, 10, "sshd", 1, 0, noAudit, 100)
			pretend(t, proc, 11, "sshd", 10, 0, noAudit, 200)
			pretend(t, proc, 12, "sshd", 11, 1000, noAudit, 200)
		}, []uint32{200}},
		"root, by PAM": {func(proc string) {
			pretend(t, proc, 10, "sshd", 1, 0, noAudit, 100)
			pretend(t, proc, 11, "sshd-session", 10, 0, "7", 200)
			pretend(t, proc, 12, "bash", 11, 0, "7", 300)
		}, []uint32{200}},
		"sshd was started in a session of somebody's": {func(proc string) {
			pretend(t, proc, 10, "sshd", 1, 0, "3", 100)
			pretend(t, proc, 11, "sshd", 10, 0, "3", 200)
			pretend(t, proc, 12, "sshd", 11, privsep, "3", 200)
		}, []uint32{100}}, // the listener, which has no peers
		"a program of a user's that calls itself sshd": {func(proc string) {
			pretend(t, proc, 20, "bash", 1, 1000, "4", 300)
			pretend(t, proc, 21, "sshd", 20, 1000, "4", 400)
		}, nil},
		"a setuid program that was started through a link": {func(proc string) {
			pretend(t, proc, 20, "bash", 1, 1000, "4", 300)
			pretend(t, proc, 21, "sshd", 20, 0, "4", 400)
			runs(t, proc, 21, "/usr/bin/sudo")
			pretend(t, proc, 22, "sshd", 21, 1000, "4", 500)
		}, nil},
		"a file of a user's": {func(proc string) {
			pretend(t, proc, 21, "sshd", 1, 0, noAudit, 400)
			runs(t, proc, 21, "/home/evil/sshd")
			pretend(t, proc, 22, "sshd", 21, 1000, "4", 500)
			pretend(t, proc, 23, "sshd", 1, 0, "5", 600)
			runs(t, proc, 23, "/home/evil/sshd")
		}, nil},
		"sshd was upgraded": {func(proc string) {
			pretend(t, proc, 10, "sshd", 1, 0, noAudit, 100)
			runs(t, proc, 10, "/usr/sbin/sshd (deleted)")
			pretend(t, proc, 12, "sshd-session", 10, 1000, noAudit, 200)
			runs(t, proc, 12, "/usr/lib/openssh/sshd-session (deleted)")
		}, []uint32{200}},
		"started by systemd for one connection": {func(proc string) {
			pretend(t, proc, 11, "sshd", 1, 0, "8", 200)
		}, []uint32{200}},
	} {
		t.Run(name, func(t *testing.T) {
			proc := t.TempDir()
			tt.pretend(proc)
			if err := os.WriteFile(filepath.Join(proc, "version"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := sshProcesses(proc, privsep, func(exe string) bool { return strings.HasPrefix(exe, "/usr/") })
			if err != nil {
				t.Fatal(err)
			}
			if v := slices.Sorted(maps.Keys(got.vouched)); !slices.Equal(v, tt.vouched) {
				t.Errorf("vouched for %v, want %v", v, tt.vouched)
			}
		})
	}
}

// A program is root's where nobody else could have put it.
func TestOfRoot(t *testing.T) {
	other := exec.Command("sleep", "60") // of another user's than root
	if os.Geteuid() == 0 {
		other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	})
	mine := filepath.Join(t.TempDir(), "sshd")
	if err := os.WriteFile(mine, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]bool{
		"/bin/../usr/bin/env": true, "/usr/bin/env": true, "/usr/bin/none-such": true,
		fmt.Sprintf("/proc/%d/comm", other.Process.Pid): false, // which nobody but its owner may write to
		mine: false, "/tmp/sshd": false, "/usr/none/such/sshd": false, "usr/bin/env": false, "": false,
	} {
		if got := ofRoot(path); got != want {
			t.Errorf("%q: %t, want %t", path, got, want)
		}
	}
}

func TestUserID(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(path, []byte("root:x:0:0::/root:/bin/sh\nbad\nsshd:x:105:65534::/run/sshd:/bin/false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]int{"sshd": 105, "root": 0, "nobody": -1, "bad": -1} {
		if id, err := userID(path, name); id != want || err != nil {
			t.Errorf("%s: %d, %v", name, id, err)
		}
	}
}

func FuzzDecodeSocket(f *testing.F) {
	f.Add(make([]byte, diagMessage))
	f.Add(append([]byte{10, 1, 0, 0, 0, 22}, make([]byte, 66)...))
	f.Fuzz(func(t *testing.T, m []byte) {
		if s, ok := decodeSocket(m); ok && (!s.peer.IsValid() || s.peer.Is4In6()) {
			t.Errorf("%+v", s)
		}
	})
}
