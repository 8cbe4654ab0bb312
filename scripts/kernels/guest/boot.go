package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/kernels/plan"
)

// boot is the life of process 1. Whatever happens, the machine is switched off in the end.
func boot() {
	if err := work(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: switch off:", err)
	}
}

func work() error {
	if err := mounts(); err != nil {
		return err
	}
	out, err := port("/dev/ttyS1")
	if err != nil {
		return err
	}
	defer out.Close()
	text, err := os.ReadFile(plan.File)
	if err != nil {
		return err
	}
	var p plan.Plan
	if err := json.Unmarshal(text, &p); err != nil {
		return fmt.Errorf("read the plan: %w", err)
	}
	for _, file := range p.Modules {
		if err := insert(file); err != nil {
			return err
		}
	}
	for _, step := range p.Steps {
		fmt.Fprintf(out, "\n%s %s\n", plan.Begin, step.Name)
		code := run(out, step)
		fmt.Fprintf(out, "\n%s %s %d\n", plan.End, step.Name, code)
	}
	fmt.Fprintf(out, "%s\n", plan.Done)
	return unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // wait until all is out
}

func mounts() error {
	for _, m := range []struct{ kind, at string }{
		{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}, {"bpf", "/sys/fs/bpf"},
		{"cgroup2", "/sys/fs/cgroup"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"},
	} {
		if err := os.MkdirAll(m.at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.at, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	return nil
}

// port opens a serial port that passes on what is written as it is.
func port(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	t.Oflag &^= unix.OPOST
	t.Cflag = t.Cflag&^unix.CBAUD | unix.B115200
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

func insert(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", file, err)
	}
	return nil
}

// run returns the exit code of a step; 255 if it did not come to one.
func run(out io.Writer, step plan.Step) int {
	ctx, cancel := context.WithTimeout(context.Background(), step.Limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, step.Command[0], step.Command[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = step.Dir, append(os.Environ(), step.Env...), out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintf(out, "\nguest: %s was killed after %s\n", step.Name, step.Limit)
	case errors.As(err, &exit) && exit.ExitCode() >= 0:
		return exit.ExitCode()
	default:
		fmt.Fprintf(out, "\nguest: %s: %v\n", step.Name, err)
	}
	return 255
}
