package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"iter"
)

// Entry is a record as it was read, and its line.
type Entry struct {
	Record
	Line []byte
}

// Read iterates over the records of a log, the oldest first. Lines that are no records are left out:
// Verify tells of them.
func Read(path string) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		files, err := openAll(path)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		for _, f := range files {
			in := bufio.NewReaderSize(f, 256<<10)
			for {
				line, err := readLine(in)
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					yield(Entry{}, fmt.Errorf("%s: %w", f.Name(), err))
					return
				}
				if r, err := parseLine(line); err == nil && !yield(Entry{r, line}, nil) {
					return
				}
			}
		}
	}
}

// Contains tells whether a record of a log has a hash.
func Contains(path, hash string) (bool, error) {
	for e, err := range Read(path) {
		if err != nil {
			return false, err
		}
		if hashOf(e.Line) == hash {
			return true, nil
		}
	}
	return false, nil
}
