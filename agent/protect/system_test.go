package protect

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netns"
)

// inNamespace runs a test on a thread of its own, in a network of its own.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Getenv("LEVEE_UNPRIVILEGED") != "" {
		t.Skip("LEVEE_UNPRIVILEGED is set: a network namespace takes root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	own, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	defer func() {
		if err := netns.Set(before); err != nil {
			panic(err) // the thread would carry the namespace into other tests
		}
	}()
	f()
}

func ip(t *testing.T, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

func TestHost(t *testing.T) {
	inNamespace(t, func() {
		for _, c := range []string{
			"link set lo up", "link add a0 type veth peer name b0", "link set a0 up", "link set b0 up",
			"addr add 192.0.2.1/24 dev a0", "addr add 192.0.2.2/24 dev a0", "addr add 2001:db8::1/64 dev a0 nodad",
			"route add default via 192.0.2.254", "route add 198.51.100.0/24 via 192.0.2.99",
			"route add default table 100 nexthop via 192.0.2.250 nexthop via 192.0.2.251",
			"-6 route add default via 2001:db8::fe dev a0", "route add default via inet6 2001:db8::fd dev a0 table 101",
		} {
			ip(t, c)
		}
		own, err := Host{}.Own()
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"} {
			if !slices.Contains(own, Found{netip.MustParsePrefix(want), "this host's own address (a0)"}) {
				t.Errorf("%s is not among %v", want, own)
			}
		}
		for _, f := range own {
			if f.Prefix.Addr().IsLoopback() {
				t.Errorf("%v", f)
			}
		}
		gateways, err := Host{}.Gateways()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, g := range gateways {
			got = append(got, g.Prefix.Addr().String())
		}
		slices.Sort(got)
		want := []string{"192.0.2.250", "192.0.2.251", "192.0.2.254", "2001:db8::fd", "2001:db8::fe"}
		if !slices.Equal(got, want) {
			t.Errorf("gateways %v, want %v", got, want)
		}
	})
}

func TestResolverFiles(t *testing.T) {
	dir := t.TempDir()
	stub, real := filepath.Join(dir, "stub"), filepath.Join(dir, "real")
	for path, text := range map[string]string{stub: "nameserver 127.0.0.53\n", real: "nameserver 192.0.2.53\n"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	found, err := resolvers([]string{stub, filepath.Join(dir, "none"), real})
	if err != nil || len(found) != 1 || found[0].Prefix.String() != "192.0.2.53/32" || !strings.Contains(found[0].Words, real) {
		t.Errorf("%v, %v", found, err)
	}
	if _, err := resolvers([]string{dir}); err == nil {
		t.Error("a directory was read")
	}
}

// The kernel filters sockets by state and port, of both families.
func TestSockets(t *testing.T) {
	inNamespace(t, func() {
		ip(t, "link set lo up")
		ip(t, "addr add 192.0.2.1/32 dev lo")
		ip(t, "addr add 2001:db8::1/128 dev lo nodad")
		for _, address := range []string{"192.0.2.1:2222", "[2001:db8::1]:2222", "192.0.2.1:80"} {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			c, err := net.Dial("tcp", address)
			// The kernel makes the route to an IPv6 address of its own a moment after the address.
			for until := time.Now().Add(20 * time.Second); errors.Is(err, syscall.ENETUNREACH) && time.Now().Before(until); {
				time.Sleep(time.Millisecond)
				c, err = net.Dial("tcp", address)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		show := func(states uint32, port uint16) string {
			list, err := sockets(states, port)
			if err != nil {
				t.Fatal(err)
			}
			var out []string
			for _, s := range list {
				out = append(out, fmt.Sprintf("%d %s %v", s.port, s.peer, s.inode > 0))
			}
			slices.Sort(out)
			return strings.Join(out, ", ")
		}
		if got, want := show(established, 2222), "2222 192.0.2.1 false, 2222 2001:db8::1 false"; got != want {
			t.Errorf("established: %s, want %s", got, want) // not accepted yet: nobody has its inode
		}
		if got, want := show(listening, 0), "2222 0.0.0.0 true, 2222 :: true, 80 0.0.0.0 true"; got != want {
			t.Errorf("listening: %s, want %s", got, want)
		}
		if got := show(established, 23); got != "" {
			t.Errorf("of another port: %s", got)
		}
	})
}

// With a real sshd: who has logged in is found, as root and as somebody else, and who has only
// connected is not.
func TestSSH(t *testing.T) {
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		if os.Getenv("LEVEE_SETUP") != "" {
			t.Fatalf("scripts/setup has run, and there is no sshd: %v", err)
		}
		t.Skip("there is no sshd here: scripts/setup installs it")
	}
	inNamespace(t, func() {
		ip(t, "link set lo up")
		for _, a := range []string{"192.0.2.1", "192.0.2.8", "192.0.2.9", "192.0.2.10", "192.0.2.11"} {
			ip(t, "addr add "+a+"/32 dev lo")
		}
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil { // as sshd wants it
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("/tmp", "levee-sshd")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // nobody reads its keys there
			t.Fatal(err)
		}
		key := filepath.Join(dir, "key")
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// sshd reads it as whoever logs in, whatever the umask.
		if err := os.Chmod(key+".pub", 0o644); err != nil { // it is the public one
			t.Fatal(err)
		}
		start := exec.Command(sshd, "-D", "-e", "-f", "/dev/null", "-h", key, "-o", "ListenAddress=192.0.2.1:2222",
			"-o", "AuthorizedKeysFile="+key+".pub", "-o", "StrictModes=no", "-o", "UsePAM=yes", "-o", "PidFile=none", "-o", "PermitRootLogin=yes")
		var said strings.Builder
		start.Stderr = &said
		if err := start.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = start.Process.Kill()
			_ = start.Wait()
			if t.Failed() {
				t.Log(said.String())
			}
		}()
		await := func(what string, ok func() bool) {
			t.Helper()
			for until := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(until) {
					t.Fatalf("not so: %s", what)
				}
			}
		}
		dial := func(from string) net.Conn {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("tcp", "192.0.2.1:2222")
			if err != nil {
				return nil
			}
			return c
		}
		var bot net.Conn
		await("sshd listens", func() bool { bot = dial("192.0.2.8"); return bot != nil })
		defer bot.Close()
		if _, err := bot.Write([]byte("SSH-2.0-bot\r\n")); err != nil {
			t.Fatal(err)
		}
		// Once sshd has offered its ciphers, a process without rights serves the bot.
		for answer := make([]byte, 0, 4096); !strings.Contains(string(answer), "curve25519"); {
			n, err := bot.Read(answer[len(answer):cap(answer)])
			if answer = answer[:len(answer)+n]; err != nil {
				t.Fatalf("%q, %v", answer, err)
			}
		}
		for user, from := range map[string]string{"root": "192.0.2.9", "nobody": "192.0.2.10"} {
			c := exec.Command("ssh", "-N", "-i", key, "-b", from, "-p", "2222", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
				"-o", "BatchMode=yes", "-F", "/dev/null", user+"@192.0.2.1")
			if err := c.Start(); err != nil {
				t.Fatal(err)
			}
			defer func() {
				_ = c.Process.Kill()
				_ = c.Wait()
			}()
		}
		// Without auditing in this kernel, or the right to use it, root can't be told by it.
		want := []string{"192.0.2.10/32", "192.0.2.9/32"}
		if !audited(t) {
			want = want[:1]
			t.Log("no audit sessions here: root's is left to systemd-logind")
		}
		var got []string
		await("those who have logged in are found", func() bool {
			found, err := Host{}.Sessions()
			if err != nil {
				t.Fatal(err)
			}
			got = got[:0]
			for _, f := range found {
				got = append(got, f.Prefix.String())
			}
			slices.Sort(got)
			got = slices.Compact(got)
			return slices.Equal(got, want) || len(got) > len(want)
		})
		if !slices.Equal(got, want) {
			t.Errorf("found %v, want %v", got, want)
		}
	})
}

// audited tells whether this kernel gives sessions numbers.
func audited(t *testing.T) bool {
	t.Helper()
	_, err := os.Stat("/proc/self/sessionid")
	return err == nil
}
