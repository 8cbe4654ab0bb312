package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/levee-xdp/levee/scripts/internal/space"
)

// machine is what a figure must be read with.
type machine struct {
	CPU         string `json:"cpu"`
	CPUs        int    `json:"cpus"`
	Hypervisor  bool   `json:"hypervisor"`
	Kernel      string `json:"kernel"`
	TickHz      int    `json:"tick_hz"`
	Clocksource string `json:"clocksource"`
	Go          string `json:"go"`
	Load        string `json:"load"` // when the run began
}

func thisMachine() machine {
	m := machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "model name":
			m.CPU = strings.TrimSpace(value)
		case "flags":
			m.Hypervisor = strings.Contains(value, " hypervisor")
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = string(u.Release[:bytes.IndexByte(u.Release[:], 0)])
	}
	var tick unix.Timespec
	if unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &tick) == nil {
		m.TickHz = int(time.Second / time.Duration(tick.Nano()))
	}
	m.Clocksource = firstLine("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	m.Load, _, _ = strings.Cut(firstLine("/proc/loadavg"), " ")
	return m
}

func (m machine) String() string {
	virtual := ""
	if m.Hypervisor {
		virtual = ", virtual"
	}
	return fmt.Sprintf("%s, %d CPUs%s; kernel %s, %d Hz, clock %s; %s; load %s",
		m.CPU, m.CPUs, virtual, m.Kernel, m.TickHz, m.Clocksource, m.Go, m.Load)
}

func firstLine(path string) string {
	b, _ := os.ReadFile(path)
	line, _, _ := strings.Cut(string(b), "\n")
	return line
}

// measuring binds the calling thread to a CPU and puts it before all others there.
func measuring(cpu int) error {
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -20); err != nil {
		return fmt.Errorf("raise the priority: %w", err)
	}
	return space.Pin(0, cpu)
}

// threadTime is the CPU time of the calling thread: what others take from its CPU is not in it.
func threadTime() time.Duration { return clock(unix.CLOCK_THREAD_CPUTIME_ID) }

func monotonic() time.Duration { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(id, &ts)
	return time.Duration(ts.Nano())
}
