package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// command runs a program inside a space.
func command(s *space.Space, stdin, name string, args ...string) error {
	return s.Do(func() error {
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

// wire is a pair of virtual interfaces between two namespaces.
type wire struct {
	from, to           *space.Space
	fromName, toName   string
	fromIndex, toIndex int
	toMAC              net.HardwareAddr
	links              []link.Link
}

func newWire(cpu, number int) (_ *wire, err error) {
	// Short, and of this process alone: receive threads are found by the name.
	name := fmt.Sprintf("l%x%c", os.Getpid(), 'a'+number)
	w := &wire{fromName: name + "0", toName: name + "1"}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if w.from, err = space.New("bench", cpu); err != nil {
		return nil, err
	}
	if w.to, err = space.New("bench", cpu); err != nil {
		return nil, err
	}
	far, err := w.to.Handle()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	err = w.from.Do(func() error {
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
	return w, w.to.Do(func() error {
		var err error
		if w.toIndex, w.toMAC, err = raise(w.toName); err != nil {
			return err
		}
		return space.ReceiveOn(w.toName)
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
	err := w.to.Do(func() error {
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
		return space.Pin(pid, cpu)
	}
	return fmt.Errorf("no receive thread called %s", want)
}

// received is how many frames the far end has taken in so far.
func (w *wire) received() (n uint64, err error) {
	err = w.to.Do(func() error {
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
	for _, s := range []*space.Space{w.from, w.to} {
		if s != nil {
			s.Close()
		}
	}
}
