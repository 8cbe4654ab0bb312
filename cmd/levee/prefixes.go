package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// Bounds of a list that is read from stdin.
const (
	maxLine  = 4096
	maxItems = 8 << 20
	maxTold  = 10 // problems of a list that are told one by one
)

// batch is how many prefixes go to the daemon in one request.
const batch = 10_000

// listError says what is wrong with a list, line by line. Nothing of it was taken.
type listError struct {
	problems []error
	more     int
}

func (e *listError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "the list has %s; nothing was changed", plural(len(e.problems)+e.more, "bad line", "bad lines"))
	for _, p := range e.problems {
		b.WriteString("\n  " + p.Error())
	}
	if e.more > 0 {
		fmt.Fprintf(&b, "\n  and %d more", e.more)
	}
	return b.String()
}

// readPrefixes reads a list: one prefix a line; what follows a # or a ; is a comment. A prefix that
// stands there twice is taken once. The error is a *listError if it is about lines.
func readPrefixes(r io.Reader) ([]netip.Prefix, error) {
	var (
		prefixes []netip.Prefix
		seen     = map[netip.Prefix]struct{}{}
		bad      listError
		in       = bufio.NewReaderSize(r, 64<<10)
	)
	for number := 1; ; number++ {
		line, tooLong, err := readLine(in)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("read the list, line %d: %w", number, err)
		}
		if err != nil && len(line) == 0 && !tooLong {
			break
		}
		if number == 1 {
			line = bytes.TrimPrefix(line, []byte("\ufeff"))
		}
		p, some, problem := parseLine(line, tooLong)
		switch {
		case problem != nil && len(bad.problems) < maxTold:
			bad.problems = append(bad.problems, fmt.Errorf("line %d: %w", number, problem))
		case problem != nil:
			bad.more++
		case some:
			if _, twice := seen[p]; !twice {
				if len(prefixes) == maxItems {
					return nil, usage("line %d: the list has more than %d prefixes", number, maxItems)
				}
				seen[p] = struct{}{}
				prefixes = append(prefixes, p)
			}
		}
		if err != nil {
			break
		}
	}
	if len(bad.problems) > 0 {
		return nil, &usageError{&bad}
	}
	return prefixes, nil
}

// readLine reads a line without its end. Of one that is too long it returns the beginning.
func readLine(in *bufio.Reader) (line []byte, tooLong bool, err error) {
	for {
		part, more, err := in.ReadLine()
		if err != nil {
			return line, tooLong, err
		}
		if room := maxLine - len(line); len(part) > room {
			part, tooLong = part[:room], true
		}
		line = append(line, part...)
		if !more {
			return line, tooLong, nil
		}
	}
}

func parseLine(line []byte, tooLong bool) (p netip.Prefix, some bool, err error) {
	if i := bytes.IndexAny(line, "#;"); i >= 0 {
		line, tooLong = line[:i], false
	}
	if tooLong {
		return p, false, fmt.Errorf("is longer than %d bytes", maxLine)
	}
	text := strings.TrimSpace(string(line))
	if text == "" {
		return p, false, nil
	}
	if before, after, two := strings.Cut(text, " "); two {
		return p, false, &state.Error{Code: state.CodeInvalid, Field: "prefix", Value: before,
			Detail: fmt.Sprintf("is followed by %q; write one prefix a line, and a # before comments", strings.TrimSpace(after))}
	}
	p, err = state.ParsePrefix(text)
	return p, err == nil, err
}

// prefixes returns what arguments name, or with "-" what stdin lists.
func (a *app) prefixes(args []string) ([]netip.Prefix, error) {
	if len(args) == 1 && args[0] == "-" {
		if a.stdinTTY {
			a.note("Reading prefixes from the terminal, one a line; Ctrl-D ends the list.")
		}
		found, err := readPrefixes(a.stdin)
		if err == nil && len(found) == 0 {
			a.note("The list is empty; nothing to do.")
		}
		return found, err
	}
	var (
		found []netip.Prefix
		seen  = map[netip.Prefix]struct{}{}
		bad   []error
	)
	for _, arg := range args {
		if arg == "-" {
			return nil, usage("- reads the list from stdin, and stands alone")
		}
		p, err := state.ParsePrefix(arg)
		if err != nil {
			bad = append(bad, err)
			continue
		}
		if _, twice := seen[p]; !twice {
			seen[p] = struct{}{}
			found = append(found, p)
		}
	}
	if len(bad) > 0 {
		return nil, &usageError{errors.Join(bad...)}
	}
	return found, nil
}
