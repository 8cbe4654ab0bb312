package loader

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// TestUnprivilegedChild is the process that TestUnprivileged starts: a daemon's life with the three
// capabilities that a service gives it, and no others.
func TestUnprivilegedChild(t *testing.T) {
	root := os.Getenv("LEVEE_TEST_UNPRIVILEGED")
	if root == "" {
		return // only a part of TestUnprivileged
	}
	if _, err := ebpf.NewProgramFromID(1); !errors.Is(err, unix.EPERM) {
		t.Fatalf("this process may open programs by their number (%v): it is not what is tested here", err)
	}
	if err := Probe(root).Err(); err != nil {
		t.Fatalf("probe: %v", err)
	}
	c := Config{Root: root, Lock: os.Getenv("LEVEE_TEST_LOCK"), Sizes: smallSizes, Features: quick}
	start := func(wantAdopted bool) *Set {
		t.Helper()
		s, err := Open(c)
		must(t, err)
		if adopted, why := s.Adopted(); adopted != wantAdopted {
			t.Fatalf("adopted %v (%s), want %v", adopted, why, wantAdopted)
		}
		return s
	}
	s := start(false)
	a, err := s.Attach("net0", ModeNative)
	must(t, err)
	if a.ProgramTag == "" {
		t.Error("the program's tag is not known")
	}
	must(t, s.Close())

	s = start(true)
	changed, err := s.Upgrade()
	must(t, err)
	if len(changed) > 0 {
		t.Errorf("the program that this set would load was not recognised: %+v", changed)
	}
	must(t, s.Close())

	c.Features.Events = !c.Features.Events
	s = start(true)
	changed, err = s.Upgrade()
	must(t, err)
	if len(changed) != 1 || changed[0].ProgramID == a.ProgramID || changed[0].LinkID != a.LinkID {
		t.Errorf("upgraded %+v, want another program under the same link as %+v", changed, a)
	}
	must(t, s.Close())

	c.Sizes.Ban4Entries *= 2
	s = start(false)
	changed, err = s.Upgrade()
	must(t, err)
	if len(changed) != 1 {
		t.Errorf("upgraded %+v to a set of another size, want net0", changed)
	}
	_, err = s.Attach("net1", ModeAuto)
	f, ok := errors.AsType[*ForeignError](err)
	if !ok || f.ProgramID == 0 || !f.Hidden {
		t.Errorf("attach where somebody else's program is: %v", err)
	}
	must(t, s.Detach("net0"))
	if left, err := os.ReadDir(rootPins(root).programs()); err != nil || len(left) > 0 {
		t.Errorf("programs that are pinned though nothing is attached: %v %v", left, err)
	}
	must(t, s.Close())
}

// A daemon with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, that owns its folder on the bpf filesystem,
// needs nothing else: no CAP_SYS_ADMIN to open what it made by number.
func TestUnprivileged(t *testing.T) {
	l := newLab(t)
	l.veth("net0", 1500)
	l.veth("net1", 1500)
	other := l.trivial()
	l.setXDP("net1", other.FD(), unix.XDP_FLAGS_DRV_MODE)

	const nobody = 65534
	dir, err := os.MkdirTemp("/tmp", "levee-test") // another user can pass through, whatever TMPDIR is
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	l.lock = filepath.Join(dir, "lock")
	must(t, os.Mkdir(l.root, 0o700))
	for _, path := range []string{l.root, dir} {
		must(t, os.Chown(path, nobody, nobody))
	}
	exe, err := os.Open("/proc/self/exe")
	must(t, err)
	defer exe.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=^TestUnprivilegedChild$", "-test.v")
	cmd.ExtraFiles = []*os.File{exe}
	cmd.Env = append(os.Environ(), "LEVEE_TEST_UNPRIVILEGED="+l.root, "LEVEE_TEST_LOCK="+l.lock)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if mode := l.tree(); len(mode) == 0 {
		t.Error("nothing was pinned")
	}
}
