package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/levee-xdp/levee/loader"
	"golang.org/x/sys/unix"
)

// errMissing wraps what this machine lacks to run the lab.
var errMissing = errors.New("the lab can't run here")

// check says what is missing before anything is made.
func check(levee string) error {
	var missing []error
	if os.Geteuid() != 0 {
		missing = append(missing, errors.New("privileges: not root; the lab makes network namespaces and loads BPF programs: run it as root"))
	}
	if release, err := kernelRelease(); err == nil {
		var major, minor int
		if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err == nil && (major < 5 || major == 5 && minor < 18) {
			missing = append(missing, fmt.Errorf("kernel: this is %s; live frames, which the floods are made of, came with 5.18 (the shield itself runs from 5.15)", release))
		}
	}
	if _, err := exec.LookPath(levee); err != nil {
		missing = append(missing, fmt.Errorf("the daemon: %w: build it with `make build`, or name it with -levee", err))
	}
	return joinMissing(missing)
}

// check says what is missing for the shield in the host's namespace, once there is one.
func (n *network) check() error {
	return n.host.Do(func() error {
		if err := loader.Probe("").Err(); err != nil {
			return joinMissing([]error{err})
		}
		return nil
	})
}

func joinMissing(missing []error) error {
	if len(missing) == 0 {
		return nil
	}
	lines := strings.ReplaceAll(errors.Join(missing...).Error(), "\n", "\n  ")
	return fmt.Errorf("%w:\n  %s", errMissing, lines)
}

func kernelRelease() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	return unix.ByteSliceToString(name.Release[:]), nil
}
