package protect

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Whoever can complete a handshake with port 22 must not be protected for it: a bot would buy itself
// immunity with one connection. So a session counts when somebody has logged in, which two parties can
// vouch for that an outsider does not command:
//
//   - systemd-logind, which PAM tells of sessions (the files that sd-login(3) reads);
//   - the process that holds the connection: sshd hands it to one that runs as the user, or, for root,
//     PAM has given it an audit session of its own. Before the login it has neither.

const (
	procDir     = "/proc"
	sessionsDir = "/run/systemd/sessions"
	defaultPort = 22
	privsepUser = "sshd" // as whom sshd speaks to those who have not logged in yet
	noAudit     = "4294967295"
)

// Sessions returns where those are who are logged in by SSH.
func (Host) Sessions() ([]Found, error) {
	out, err := logins(sessionsDir)
	if err != nil {
		return nil, err
	}
	privsep, err := userID("/etc/passwd", privsepUser)
	if err != nil {
		return nil, err
	}
	ssh, err := sshProcesses(procDir, privsep, ofRoot)
	if err != nil || len(ssh.vouched) == 0 {
		return out, err
	}
	listeners, err := sockets(listening, 0)
	if err != nil {
		return nil, err
	}
	ports := map[uint16]bool{defaultPort: true} // systemd may hold the listener
	for _, s := range listeners {
		if ssh.held[s.inode] {
			ports[s.port] = true
		}
	}
	for port := range ports {
		peers, err := sockets(established, port)
		if err != nil {
			return nil, err
		}
		for _, s := range peers {
			if ssh.vouched[s.inode] && !s.peer.IsLoopback() {
				out = append(out, session(s.peer))
			}
		}
	}
	return out, nil
}

func session(a netip.Addr) Found {
	return Found{netip.PrefixFrom(a, a.BitLen()), "the peer of a live SSH session"}
}

// logins reads the sessions that systemd-logind knows. One that names its peer by a host's name is
// left to the other party: what a name stands for is not asked of the network.
func logins(dir string) ([]Found, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Found
	for _, f := range files {
		if !f.Type().IsRegular() {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			continue // it has just ended
		}
		if a, ok := remoteLogin(text); ok {
			out = append(out, session(a))
		}
	}
	return out, nil
}

// remoteLogin reads one session's file, and returns where its user is.
func remoteLogin(text []byte) (netip.Addr, bool) {
	fields := map[string]string{}
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			fields[key] = strings.Trim(value, `"`)
		}
	}
	if fields["REMOTE"] != "1" || fields["SERVICE"] != "sshd" || fields["STATE"] == "closing" {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(fields["REMOTE_HOST"])
	a = a.WithZone("").Unmap()
	return a, err == nil && !a.IsLoopback() && !a.IsUnspecified()
}

// userID returns a user's number; -1 if there is no such user.
func userID(passwd, name string) (int, error) {
	text, err := os.ReadFile(passwd)
	if errors.Is(err, fs.ErrNotExist) {
		return -1, nil
	}
	if err != nil {
		return -1, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(line, ":"); len(f) > 2 && f[0] == name {
			if id, err := strconv.Atoi(f[2]); err == nil {
				return id, nil
			}
		}
	}
	return -1, nil
}

// sshSockets is the sockets of sshd's processes, by inode.
type sshSockets struct {
	held    map[uint32]bool // by any of them
	vouched map[uint32]bool // by one that serves somebody who has logged in
}

// sshProcesses looks through the processes of sshd, which are those that run a program of that name from
// a genuine place. A process that ends meanwhile, or may not be looked at, vouches for nobody.
func sshProcesses(dir string, privsep int, genuine func(exe string) bool) (sshSockets, error) {
	proc := processes{dir, genuine}
	found := sshSockets{map[uint32]bool{}, map[uint32]bool{}}
	dirs, err := os.ReadDir(dir)
	if err != nil {
		return found, err
	}
	for _, d := range dirs {
		if _, err := strconv.Atoi(d.Name()); err != nil {
			continue
		}
		p, ok := proc.read(d.Name())
		if !ok {
			continue
		}
		vouches := p.loggedIn(proc, privsep)
		for _, inode := range socketsOf(filepath.Join(dir, d.Name(), "fd")) {
			found.held[inode] = true
			if vouches {
				found.vouched[inode] = true
			}
		}
	}
	return found, nil
}

// process is one of sshd's.
type process struct {
	parent string
	uid    int // the effective one
	audit  string
}

// processes is /proc, and says which files are programs that nobody but root has put there.
type processes struct {
	dir     string
	genuine func(exe string) bool
}

// read reads a process if it is one of sshd's. The name that it goes by says nothing: whoever starts a
// setuid program through a link gives it the link's name, and then it is root that calls itself sshd.
func (proc processes) read(pid string) (p process, ok bool) {
	name, err := os.ReadFile(filepath.Join(proc.dir, pid, "comm"))
	if err != nil || !isSSH(strings.TrimSpace(string(name))) {
		return p, false
	}
	exe, err := os.Readlink(filepath.Join(proc.dir, pid, "exe"))
	if err != nil {
		return p, false
	}
	// An sshd that was upgraded goes on with the file that it had.
	exe = strings.TrimSuffix(exe, " (deleted)")
	if !isSSH(filepath.Base(exe)) || !proc.genuine(exe) {
		return p, false
	}
	status, err := os.ReadFile(filepath.Join(proc.dir, pid, "status"))
	if err != nil {
		return p, false
	}
	p.uid = -1
	for line := range strings.Lines(string(status)) {
		switch f := strings.Fields(line); {
		case len(f) >= 2 && f[0] == "PPid:":
			p.parent = f[1]
		case len(f) >= 3 && f[0] == "Uid:":
			if p.uid, err = strconv.Atoi(f[2]); err != nil {
				return p, false
			}
		}
	}
	audit, err := os.ReadFile(filepath.Join(proc.dir, pid, "sessionid"))
	if err != nil {
		audit = []byte(noAudit) // a kernel without auditing
	}
	p.audit = strings.TrimSpace(string(audit))
	return p, p.uid >= 0
}

// loggedIn tells whether the process serves somebody who has logged in. What runs as a user must have
// been started by sshd as root: a user's own program can call itself anything.
func (p process) loggedIn(proc processes, privsep int) bool {
	parent, ok := proc.read(p.parent)
	if p.uid != 0 {
		return ok && parent.uid == 0 && p.uid != privsep
	}
	before := noAudit // sshd's own parent is init
	if ok {
		before = parent.audit
	}
	return p.audit != noAudit && p.audit != "" && p.audit != before
}

func isSSH(name string) bool { return name == "sshd" || name == "sshd-session" }

// ofRoot tells whether nobody but root can put a file at a path: the file, if it is there, and every
// directory above it are root's, and nobody else may write to them.
func ofRoot(path string) bool {
	if !filepath.IsAbs(path) {
		return false
	}
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		info, err := os.Lstat(at)
		switch {
		case errors.Is(err, fs.ErrNotExist) && at == filepath.Clean(path):
			continue // it was removed; where it was tells enough
		case err != nil:
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		if !ok || stat.Uid != 0 || info.Mode().Perm()&0o022 != 0 {
			return false
		}
		if at == "/" {
			return true
		}
	}
}

// socketsOf returns the inodes of the sockets among a process's descriptors.
func socketsOf(dir string) (inodes []uint32) {
	fds, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, fd := range fds {
		target, err := os.Readlink(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		number, ok := strings.CutPrefix(target, "socket:[")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 32); err == nil {
			inodes = append(inodes, uint32(n))
		}
	}
	return inodes
}
