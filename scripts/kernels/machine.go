package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is a virtual one: two CPUs, and two virtio-net interfaces that a hub joins. Its kernel writes
// to the first serial port and the guest to the second. It reaches nothing outside.
type machine struct {
	image   string
	initrd  string
	console string // file that gets the first serial port
	log     string // file that gets the second
	accel   string
	cpu     string
}

const qemu = "qemu-system-x86_64"

// leastQemu is qemu's first major version of Debian that emulates two CPUs well enough. 7.2 and 8.0 may run
// an instruction that the other CPU is patching half-way, and the guest's kernel, which patches itself each
// time that a test run begins or ends while another one goes on, dies of it.
const leastQemu = 10

var qemuVersion = regexp.MustCompile(`^QEMU emulator version (\d+)\.`)

// checkQemu looks whether qemu is there, and new enough.
func checkQemu(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, qemu, "--version").Output()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is not installed; run `scripts/setup kernels` as root", qemu)
	}
	if err != nil {
		return fmt.Errorf("%s --version: %w", qemu, err)
	}
	return checkVersion(string(out))
}

func checkVersion(said string) error {
	first, _, _ := strings.Cut(said, "\n")
	found := qemuVersion.FindStringSubmatch(first)
	if found == nil {
		return fmt.Errorf("%s --version says %q, which is no version", qemu, first)
	}
	if n, err := strconv.Atoi(found[1]); err != nil || n < leastQemu {
		return fmt.Errorf("%q is too old: before %d kernels die of being emulated on two CPUs; run `scripts/setup kernels` as root", first, leastQemu)
	}
	return nil
}

func (m machine) run(ctx context.Context) error {
	args := []string{
		"-accel", m.accel, "-cpu", m.cpu, "-smp", "2", "-m", "4G", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-kernel", m.image, "-initrd", m.initrd,
		"-append", "console=ttyS0 panic=-1 oops=panic loglevel=5 net.ifnames=0 tsc=reliable",
		"-serial", "file:" + m.console, "-serial", "file:" + m.log,
	}
	for i := range 2 {
		args = append(args,
			"-netdev", fmt.Sprintf("hubport,id=port%d,hubid=0", i),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=port%d,mac=02:00:00:00:01:%02x", i, i))
	}
	cmd := exec.CommandContext(ctx, qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("the machine was stopped: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("%s: %w: %s", qemu, err, out)
	}
	return nil
}

// tail is the end of a file, as far as it can be read.
func tail(name string, n int) string {
	b, err := os.ReadFile(name)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
