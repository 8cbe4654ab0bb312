package api

import (
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/agent/state"
)

// cred is who the kernel says is on the other end of a Unix socket, as of when they connected.
type cred struct {
	unix.Ucred
	groups []uint32
}

// credOf asks the kernel.
func credOf(c net.Conn) (out cred, ok bool) {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return out, false
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return out, false
	}
	ok = false
	_ = raw.Control(func(fd uintptr) {
		u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil {
			return
		}
		out.Ucred, ok = *u, true
		out.groups = peerGroups(fd)
	})
	return out, ok
}

// peerGroups returns a peer's supplementary groups. Where the kernel does not tell there are none: a
// peer is then known by its first group alone.
func peerGroups(fd uintptr) []uint32 {
	for n := 32; n <= 65536; n *= 4 { // a process has no more
		groups := make([]uint32, n)
		size := uint32(n * 4)
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		if errno == 0 {
			return groups[:size/4]
		}
		if errno != unix.ERANGE {
			return nil
		}
	}
	return nil
}

// peers says who the peers on the Unix socket are, and what they may.
type peers struct {
	group string // whose members may; empty: nobody but root and the daemon's user

	mu    sync.Mutex
	names map[uint32]named
	gid   named
}

// named is a name, or a number, and when it was looked up.
type named struct {
	name string
	at   time.Time
}

// How long names are believed, and of how many users they are kept.
const (
	nameLife = time.Minute
	maxNames = 1024
)

// actor says who a peer is. Root, the daemon's own user and the group's members may everything,
// others nothing: a socket that anybody may write to by mistake is still none that anybody may use.
func (p *peers) actor(c cred) state.Actor {
	a := state.Actor{Kind: state.ActorPeer, Name: p.nameOf(c.Uid), ID: strconv.Itoa(int(c.Uid)), UID: c.Uid, GID: c.Gid, PID: c.Pid}
	if c.Uid == 0 || int(c.Uid) == os.Geteuid() || p.member(c) {
		a.Scopes = []state.Scope{state.ScopeAdmin}
	}
	return a
}

func (p *peers) nameOf(uid uint32) string {
	p.mu.Lock()
	n, ok := p.names[uid]
	p.mu.Unlock()
	if ok && time.Since(n.at) < nameLife {
		return n.name
	}
	n = named{at: time.Now()}
	if u, err := user.LookupId(strconv.Itoa(int(uid))); err == nil {
		n.name = u.Username
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.names == nil || len(p.names) >= maxNames {
		p.names = map[uint32]named{}
	}
	p.names[uid] = n
	return n.name
}

func (p *peers) member(c cred) bool {
	gid, ok := p.groupID()
	return ok && (c.Gid == gid || slices.Contains(c.groups, gid))
}

// groupID returns the number of the group; false if there is no such group.
func (p *peers) groupID() (uint32, bool) {
	if p.group == "" {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.gid.at) >= nameLife {
		p.gid = named{at: time.Now()}
		if g, err := user.LookupGroup(p.group); err == nil {
			p.gid.name = g.Gid
		}
	}
	n, err := strconv.ParseUint(p.gid.name, 10, 32)
	return uint32(n), err == nil
}
