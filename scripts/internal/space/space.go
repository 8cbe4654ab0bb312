// Package space makes rooms for tools that need a network and file systems of their own: nothing they do
// reaches the host, and nothing is left when they end. It never touches what it has not made.
package space

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Space is a network namespace, with file systems of its own for /sys, bpffs and /run. It belongs to
// one locked thread and has no name, so it ends when that thread and the processes that were started
// from it have ended, however they end.
type Space struct {
	name  string
	calls chan func()
}

// New makes a namespace whose thread, and whatever is started from it, runs on the given CPU.
func New(name string, cpu int) (*Space, error) {
	s := &Space{name: name, calls: make(chan func())}
	ready := make(chan error)
	onOwnThread(func() {
		err := s.enter(cpu)
		ready <- err
		if err != nil {
			return
		}
		for call := range s.calls {
			call()
		}
	})
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	return s, nil
}

// onOwnThread runs a function on a thread that is its own and ends with it. The process's first
// thread is not taken: it can't end, and stands for the whole process in /proc/self.
func onOwnThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

func (s *Space) enter(cpu int) error {
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range []struct{ fs, path, data string }{
		{"sysfs", "/sys", ""}, // that of this network
		{"bpf", "/sys/fs/bpf", "mode=0700"},
		{"tmpfs", "/run", "mode=0755,size=256m"},
	} {
		if err := unix.Mount(m.fs, m.path, m.fs, unix.MS_NOSUID|unix.MS_NODEV, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fs, m.path, err)
		}
	}
	return Pin(0, cpu)
}

// Do runs a function on the space's thread.
func (s *Space) Do(f func() error) error {
	done := make(chan error, 1)
	s.calls <- func() { done <- f() }
	return <-done
}

// Handle opens a descriptor of the network namespace.
func (s *Space) Handle() (*os.File, error) {
	var file *os.File
	err := s.Do(func() (err error) {
		file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return file, err
}

// Netns is the inode of the calling thread's network namespace.
func Netns() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("which network namespace this is: %w", err)
	}
	return st.Ino, nil
}

// Dial connects from within the space. Addresses must be literal: a resolver would leave the thread.
func (s *Space) Dial(network, address string, timeout time.Duration) (conn net.Conn, err error) {
	err = s.Do(func() error {
		conn, err = net.DialTimeout(network, address, timeout)
		return err
	})
	return conn, err
}

// Close ends the space once the processes in it have ended.
func (s *Space) Close() { close(s.calls) }

// ChildAttr makes a process end with the space that it was started from.
func ChildAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}

// ReceiveOn turns GRO on. A veth interface takes frames that XDP sends it only if it has a
// receiver that is polled (NAPI), and GRO is what gives it one where no program is attached.
func ReceiveOn(name string) error {
	type ethtoolValue struct{ command, data uint32 }
	const setGRO = 0x2c // ETHTOOL_SGRO

	value := ethtoolValue{command: setGRO, data: 1}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	request.data = unsafe.Pointer(&value)

	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return fmt.Errorf("turn GRO on at %s: %w", name, errno)
	}
	return nil
}

// Pin binds a thread or a process (0: the calling thread) to a CPU.
func Pin(pid, cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(pid, &set); err != nil {
		return fmt.Errorf("bind to CPU %d: %w", cpu, err)
	}
	return nil
}

// CPUs picks one CPU for a shielded host and one for the rest of the world; they are the same
// where there is only one.
func CPUs() (host, world int, err error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return 0, 0, fmt.Errorf("which CPUs are ours: %w", err)
	}
	var ours []int
	for cpu := range len(set) * 64 {
		if set.IsSet(cpu) {
			ours = append(ours, cpu)
		}
	}
	if len(ours) == 0 {
		return 0, 0, errors.New("which CPUs are ours: none")
	}
	return ours[0], ours[min(1, len(ours)-1)], nil
}
