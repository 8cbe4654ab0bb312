package loader

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Where the lock can't be written, it is said what to do: a directory is missing there, or the file.
func TestLockReadOnly(t *testing.T) {
	needsRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("levee-test", dir, "tmpfs", unix.MS_RDONLY, "size=64k"))
	t.Cleanup(func() { must(t, unix.Unmount(dir, 0)) })
	for _, path := range []string{filepath.Join(dir, "levee", "lock"), filepath.Join(dir, "lock")} {
		f, err := takeLock(path)
		if err == nil {
			f.Close()
			t.Fatalf("%s was locked", path)
		}
		if !errors.Is(err, unix.EROFS) {
			t.Error(err)
		}
		for _, word := range []string{"lock " + path, "read-only file system", "ReadWritePaths="} {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%q is not said: %v", word, err)
			}
		}
	}
}
