package main

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// archive writes the kernel's initramfs: cpio in its "newc" form, compressed by gzip
// (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	file *os.File
	zip  *gzip.Writer
	n    int // entries so far
	size int // bytes so far
	made map[string]bool
	err  error
}

func newArchive(name string) (*archive, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	zip, err := gzip.NewWriterLevel(f, gzip.BestSpeed)
	return &archive{file: f, zip: zip, made: make(map[string]bool)}, err
}

const (
	modeFile = 0o100755
	modeDir  = 0o040755
)

// add puts a file into the archive, with the folders above it.
func (a *archive) add(name string, content []byte) {
	name = strings.TrimPrefix(path.Clean(name), "/")
	for i, c := range name {
		if c == '/' && !a.made[name[:i]] {
			a.made[name[:i]] = true
			a.entry(name[:i], modeDir, nil)
		}
	}
	a.entry(name, modeFile, content)
}

func (a *archive) entry(name string, mode int, content []byte) {
	a.n++
	links := 1
	if mode == modeDir {
		links = 2
	}
	// magic, inode, mode, uid, gid, links, mtime, size, device and its own, length of the name, checksum
	a.write(fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.n, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0))
	a.write(name + "\x00")
	a.align()
	a.write(string(content))
	a.align()
}

func (a *archive) write(s string) {
	if a.err == nil {
		_, a.err = io.WriteString(a.zip, s)
		a.size += len(s)
	}
}

func (a *archive) align() { a.write(strings.Repeat("\x00", -a.size&3)) }

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil)
	for _, err := range []error{a.err, a.zip.Close(), a.file.Close()} {
		if err != nil {
			return fmt.Errorf("write the initramfs: %w", err)
		}
	}
	return nil
}
