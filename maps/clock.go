package maps

import "golang.org/x/sys/unix"

// Monotonic returns the time in ns of CLOCK_MONOTONIC, in which every time in the tables is told.
// It stands still while the host is suspended, and begins anew when it boots.
func Monotonic() uint64 { return clock(unix.CLOCK_MONOTONIC) }

// coarse returns the time as the program compares it with expiries: late by a tick at most.
func coarse() uint64 { return clock(unix.CLOCK_MONOTONIC_COARSE) }

// tick returns by how much the coarse clock may be late, in ns.
func tick() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 1e7 // a tick of 100 Hz, the longest there is
	}
	return uint64(ts.Nano())
}

func clock(id int32) uint64 {
	var ts unix.Timespec
	// These clocks are always there: the call cannot fail on a kernel that has BPF.
	_ = unix.ClockGettime(id, &ts)
	return uint64(ts.Nano())
}
