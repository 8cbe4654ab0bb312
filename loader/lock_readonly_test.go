package loader

import (
	"io/fs"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where the lock can't be written, it is said what to do.
func TestLockReadOnly(t *testing.T) {
	err := lockError("/run/levee/lock", &fs.PathError{Op: "open", Path: "/run/levee/lock", Err: unix.EROFS})
	for _, word := range []string{"lock /run/levee/lock", "read-only file system", "ReadWritePaths="} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not said: %v", word, err)
		}
	}
}
