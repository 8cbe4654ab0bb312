package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	shared "github.com/levee-xdp/levee/scripts/internal/space"
)

// space is a network namespace with file systems of its own for /sys, bpffs and /run. It belongs to
// one locked thread and has no name, so it ends when that thread and what was started from it end.
type space struct {
	calls chan func()
}

// newSpace makes a namespace whose thread, and whatever is started from it, runs on a CPU.
func newSpace(cpu int) (*space, error) {
	s := &space{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread is not fit for other goroutines
		err := enterSpace(cpu)
		ready <- err
		if err != nil {
			return
		}
		for call := range s.calls {
			call()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make a namespace: %w", err)
	}
	return s, nil
}

func enterSpace(cpu int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ fs, path, data string }{
		{"sysfs", "/sys", ""}, {"bpf", "/sys/fs/bpf", "mode=0700"}, {"tmpfs", "/run", "mode=0755"},
	} {
		if err := unix.Mount(m.fs, m.path, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.path, err)
		}
	}
	return pin(cpu)
}

// do runs a function on the space's thread.
func (s *space) do(f func() error) error {
	done := make(chan error, 1)
	s.calls <- func() { done <- f() }
	return <-done
}

// command runs a program inside the space.
func (s *space) command(stdin, name string, args ...string) error {
	return s.do(func() error {
		c := exec.Command(name, args...)
		c.Stdin = strings.NewReader(stdin)
		out, err := c.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLine(string(out)))
		}
		return nil
	})
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

func (s *space) close() { close(s.calls) }

// wire is a pair of virtual interfaces between two namespaces.
type wire struct {
	from, to           *space
	fromName, toName   string
	fromIndex, toIndex int
	toMAC              net.HardwareAddr
	links              []link.Link
}

func newWire(cpu, number int) (w *wire, err error) {
	// Short, and of this process alone: receive threads are found by the name.
	name := fmt.Sprintf("l%x%c", os.Getpid(), 'a'+number)
	w = &wire{fromName: name + "0", toName: name + "1"}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.from, err = newSpace(cpu); err != nil {
		return nil, err
	}
	if w.to, err = newSpace(cpu); err != nil {
		return nil, err
	}
	var far *os.File
	err = w.to.do(func() (err error) {
		far, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		return nil, err
	}
	defer far.Close()
	err = w.from.do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: w.fromName, MTU: 1500, NumRxQueues: 1, NumTxQueues: 1},
			PeerName:      w.toName,
			PeerNamespace: netlink.NsFd(far.Fd()),
		}); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		w.fromIndex, _, err = raise(w.fromName)
		return err
	})
	if err != nil {
		return nil, err
	}
	return w, w.to.do(func() error {
		var err error
		if w.toIndex, w.toMAC, err = raise(w.toName); err != nil {
			return err
		}
		return shared.ReceiveOn(w.toName)
	})
}

func raise(name string) (int, net.HardwareAddr, error) {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return 0, nil, fmt.Errorf("find %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(nic); err != nil {
		return 0, nil, fmt.Errorf("bring %s up: %w", name, err)
	}
	return nic.Attrs().Index, nic.Attrs().HardwareAddr, nil
}

// ownCPU gives the far end's receiver a thread of its own, on another CPU than the sender's.
func (w *wire) ownCPU(cpu int) error {
	err := w.to.do(func() error {
		return os.WriteFile(filepath.Join("/sys/class/net", w.toName, "threaded"), []byte("1"), 0)
	})
	if err != nil {
		return fmt.Errorf("no receive thread: %w", err)
	}
	comms, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	want := "napi/" + w.toName
	for _, path := range comms {
		if comm, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(comm), want[:min(len(want), 15)]) {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			return err
		}
		var set unix.CPUSet
		set.Set(cpu)
		if err := unix.SchedSetaffinity(pid, &set); err != nil {
			return fmt.Errorf("bind the receive thread: %w", err)
		}
		return nil
	}
	return fmt.Errorf("no receive thread called %s", want)
}

// received is how many frames the far end has taken in so far.
func (w *wire) received() (n uint64, err error) {
	err = w.to.do(func() error {
		nic, err := netlink.LinkByName(w.toName)
		if err != nil {
			return err
		}
		if nic.Attrs().Statistics == nil {
			return errors.New("no statistics")
		}
		n = nic.Attrs().Statistics.RxPackets
		return nil
	})
	return n, err
}

func (w *wire) close() {
	for _, l := range w.links {
		_ = l.Close()
	}
	for _, s := range []*space{w.from, w.to} {
		if s != nil {
			s.close()
		}
	}
}
