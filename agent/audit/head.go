package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// head says how far the log goes: it is kept in a file of its own, so that a log whose end was cut off
// is told from one that ended there.
type head struct {
	Sequence uint64 `json:"sequence"` // of the last record
	Hash     string `json:"hash"`     // of its line
	First    uint64 `json:"first"`    // the sequence of the first record that is kept
}

// zeroHash is what the first record of all has as the hash of the one before.
var zeroHash = strings.Repeat("0", 64)

func headPath(path string) string { return path + ".head" }

func readHead(path string) (h head, err error) {
	text, err := os.ReadFile(headPath(path))
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(text, &h); err != nil || len(h.Hash) != len(zeroHash) {
		return head{}, fmt.Errorf("%s makes no sense", headPath(path))
	}
	return h, nil
}

// writeHead replaces the head, so that there is always a whole one.
func writeHead(path string, h head) error {
	text, err := json.Marshal(h)
	if err != nil {
		return err
	}
	temp := headPath(path) + ".new"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(temp, headPath(path)); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// rotated names a file that was set aside by the sequence of its first record.
func rotated(path string, first uint64) string {
	ext := filepath.Ext(path)
	return fmt.Sprintf("%s-%012d%s", strings.TrimSuffix(path, ext), first, ext)
}

// firstOf reads the sequence of the first record from the name of a file that was set aside.
func firstOf(file, path string) (uint64, bool) {
	ext := filepath.Ext(path)
	rest, ok := strings.CutPrefix(file, strings.TrimSuffix(path, ext)+"-")
	if !ok {
		return 0, false
	}
	digits, ok := strings.CutSuffix(rest, ext)
	if !ok || len(digits) < 12 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return n, err == nil
}

// Files returns the log's files that are there, the oldest first.
func Files(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	type numbered struct {
		path  string
		first uint64
	}
	var found []numbered
	current := false
	for _, e := range entries {
		file := filepath.Join(filepath.Dir(path), e.Name())
		if file == filepath.Clean(path) {
			current = true
		} else if n, ok := firstOf(file, filepath.Clean(path)); ok {
			found = append(found, numbered{file, n})
		}
	}
	slices.SortFunc(found, func(a, b numbered) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	var out []string
	for _, f := range found {
		out = append(out, f.path)
	}
	if current {
		out = append(out, path)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
	}
	return out, nil
}

// lastOf returns the last whole line of a file.
func lastOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	_, line, err := lastLine(f, info.Size())
	return line, err
}

func firstLine(f io.ReaderAt) ([]byte, error) {
	line, err := bufio.NewReader(io.NewSectionReader(f, 0, maxLine)).ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	return line[:len(line)-1], nil
}

// maxLine bounds a record's line, in bytes.
const maxLine = 4 << 20

// parseLine reads what the chain needs of a line.
func parseLine(line []byte) (r Record, err error) {
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("is no record: %w", err)
	}
	if r.Event.Sequence == 0 || len(r.Levee.Previous) != len(zeroHash) {
		return r, errors.New("is no record of the audit log")
	}
	return r, nil
}
