package state

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the time as the state needs it: how long a ban lasts is measured by the clock that
// nobody can set, and only a reboot makes the wall clock speak.
type Clock interface {
	Now() time.Time    // the wall's
	Monotonic() uint64 // ns of CLOCK_MONOTONIC
	Boot() string      // names the boot since which Monotonic counts
}

// SystemClock is the kernel's.
type SystemClock struct{}

// Now returns the wall clock's time.
func (SystemClock) Now() time.Time { return time.Now() }

// Monotonic returns ns of CLOCK_MONOTONIC, which is what the program in the kernel compares with.
func (SystemClock) Monotonic() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0 // it cannot fail for this clock
	}
	return uint64(ts.Nano())
}

// Boot returns the kernel's boot id.
func (SystemClock) Boot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(b))
}
