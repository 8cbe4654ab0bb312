package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

// Problem is a place at which the log is not what was written.
type Problem struct {
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"` // from 1; 0 if it is about the file as a whole
	Sequence uint64 `json:"sequence,omitempty"`
	Detail   string `json:"detail"`
}

// String names the place first.
func (p Problem) String() string {
	if p.Line > 0 {
		return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Detail)
	}
	return p.File + ": " + p.Detail
}

// Report is what verifying a log came to.
type Report struct {
	Files    int       `json:"files"`
	Records  int       `json:"records"`
	First    uint64    `json:"first,omitempty"` // sequence
	Last     uint64    `json:"last,omitempty"`
	Hash     string    `json:"hash,omitempty"` // of the last line: keep it elsewhere, and compare
	Problems []Problem `json:"problems"`
	More     int       `json:"more,omitempty"` // problems beyond those
}

// maxProblems bounds what is told of a log that is no log at all.
const maxProblems = 20

type verifier struct {
	Report
	head    head
	hasHead bool

	last     uint64 // the sequence of the line before
	hash     string // of the line before
	file     string // of the line before
	line     int
	anchored bool // the record that was anchored has been seen
}

// Verify reads a log and names every place at which it is not what was written. It may be written
// meanwhile. The error says that it could not be read.
func Verify(path string) (Report, error) {
	v := verifier{Report: Report{Problems: []Problem{}}, hash: zeroHash}
	// The head first: what is written meanwhile is beyond it.
	h, err := readHead(path)
	switch {
	case err == nil:
		v.head, v.hasHead = h, true
	case errors.Is(err, fs.ErrNotExist):
		v.problem(headPath(path), 0, 0, "is missing: whether the end was cut off can't be told")
	default:
		v.problem(headPath(path), 0, 0, "makes no sense: whether the end was cut off can't be told")
	}
	files, err := openAll(path)
	if err != nil {
		return v.Report, err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for i, f := range files {
		if err := v.read(f, i == len(files)-1); err != nil {
			return v.Report, err
		}
	}
	v.end(path)
	v.Files, v.Last = len(files), v.last
	if v.Records > 0 {
		v.Hash = v.hash
	}
	return v.Report, nil
}

// openAll opens every file of a log, though they may be set aside meanwhile.
func openAll(path string) ([]*os.File, error) {
	for try := 0; ; try++ {
		paths, err := Files(path)
		if err != nil {
			return nil, err
		}
		var files []*os.File
		for _, p := range paths {
			f, openErr := os.Open(p)
			if openErr != nil {
				err = openErr
				break
			}
			files = append(files, f)
		}
		// The same list again says that none was moved while they were opened.
		again, listErr := Files(path)
		if err == nil && listErr == nil && fmt.Sprint(again) == fmt.Sprint(paths) {
			return files, nil
		}
		for _, f := range files {
			f.Close()
		}
		if try == 3 {
			return nil, errors.Join(err, listErr, errors.New("the log's files change all the time"))
		}
	}
}

func (v *verifier) problem(file string, line int, sequence uint64, format string, args ...any) {
	if len(v.Problems) >= maxProblems {
		v.More++
		return
	}
	v.Problems = append(v.Problems, Problem{file, line, sequence, fmt.Sprintf(format, args...)})
}

func (v *verifier) read(f *os.File, newest bool) error {
	in := bufio.NewReaderSize(f, 256<<10)
	for number := 1; ; number++ {
		line, err := readLine(in)
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF) && newest && v.last >= v.head.Sequence:
			return nil // it is being written
		case errors.Is(err, io.EOF):
			v.problem(f.Name(), number, 0, "is no whole line: it was cut off")
			return nil
		case err != nil:
			return fmt.Errorf("%s:%d: %w", f.Name(), number, err)
		}
		v.check(f.Name(), number, line)
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return line, err
		case len(line) > maxLine:
			return nil, fmt.Errorf("is longer than %d bytes, which no record is", maxLine)
		}
	}
}

func (v *verifier) check(file string, number int, line []byte) {
	v.Records++
	r, err := parseLine(line)
	if err != nil {
		v.problem(file, number, 0, "%v", err)
		v.hash, v.file, v.line = "", file, number
		v.last++ // it stands where the next record should
		return
	}
	n := r.Event.Sequence
	begins := v.First == 0
	if begins {
		v.First = n
		if v.hasHead && v.head.First > 0 && n > v.head.First {
			v.problem(file, number, n, "the log begins with record %d, and should with %d: the beginning is missing", n, v.head.First)
		}
	}
	switch {
	case begins && n > 1: // what stood before was dropped in good order
	case n <= v.last:
		v.problem(file, number, n, "record %d stands behind record %d: they were put in another order, or doubled", n, v.last)
	case n > v.last+1:
		v.problem(file, number, n, "record %d follows record %d: %s missing here", n, v.last, missing(v.last+1, n-1))
	case r.Levee.Previous != v.hash && n == 1:
		v.problem(file, number, n, "record 1 says that one was before it: the record was changed")
	case r.Levee.Previous != v.hash && v.hash != "":
		v.problem(v.file, v.line, v.last, "record %d is not what record %d was written behind: it was changed", v.last, n)
	}
	v.last, v.hash, v.file, v.line = n, hashOf(line), file, number
	if v.hasHead && n == v.head.Sequence {
		v.anchored = true
		if v.hash != v.head.Hash {
			v.problem(file, number, n, "record %d is not what was anchored in %s: it, or something before it, was changed", n, "the head file")
		}
	}
}

func missing(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("record %d is", from)
	}
	return fmt.Sprintf("records %d to %d are", from, to)
}

// end compares the log's end with the head.
func (v *verifier) end(path string) {
	switch {
	case !v.hasHead || v.anchored || v.head.Sequence == 0:
	case v.Records == 0:
		v.problem(path, 0, 0, "the log is empty, and had %d records", v.head.Sequence)
	case v.last < v.head.Sequence:
		v.problem(v.file, v.line, v.last, "the log ends here with record %d: %s missing, the end was cut off", v.last, missing(v.last+1, v.head.Sequence))
	default:
		v.problem(v.file, v.line, v.last, "record %d, which was anchored, is not in the log", v.head.Sequence)
	}
}
