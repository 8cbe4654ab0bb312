package state

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

// advised adds to an error of the disk what to do about it.
func advised(err error) error {
	advice := ""
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		advice = "make room on its filesystem, then ask again"
	case errors.Is(err, syscall.EROFS):
		advice = "its filesystem is mounted read-only: see the kernel's log why, and mount it writable again"
	case errors.Is(err, syscall.EIO):
		advice = "the disk fails: see the kernel's log"
	case errors.Is(err, fs.ErrPermission):
		advice = "the daemon must be able to write there"
	}
	if advice == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, advice)
}
