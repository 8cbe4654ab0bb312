package list

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// readCSV reads records of which the first names the columns. Without such a one, the first column is
// the prefix.
func readCSV(in *bufio.Reader, s sink) error {
	r := csv.NewReader(in)
	r.FieldsPerRecord, r.TrimLeadingSpace, r.ReuseRecord, r.Comment = -1, true, true, '#'
	var columns []string
	for {
		f, err := r.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if bad, ok := errors.AsType[*csv.ParseError](err); ok {
			if err := s.bad(bad.Line, "", "%v", bad.Err); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		line, _ := r.FieldPos(0)
		if columns == nil {
			named := false
			for _, name := range f {
				ours := fieldOf(name)
				columns, named = append(columns, ours), named || ours == "prefix"
			}
			if named {
				continue
			}
			columns = []string{"prefix"}
		}
		fields := map[string]string{}
		for i, ours := range columns {
			if i < len(f) && ours != "" {
				fields[ours] = f[i]
			}
		}
		if err := record(s, line, fields); err != nil {
			return err
		}
	}
}

// jsonList reads JSON as it comes: objects one after the other, in an array, or in an array within an
// object.
type jsonList struct {
	*json.Decoder
	sink
	number int
}

func readJSON(in *bufio.Reader, s sink) error {
	l := &jsonList{Decoder: json.NewDecoder(in), sink: s}
	l.UseNumber()
	for {
		t, err := l.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("behind item %d: not JSON: %w", l.number, err)
		}
		if err := l.value(t, 0); err != nil {
			return err
		}
	}
}

// value reads what a token begins.
func (l *jsonList) value(t json.Token, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("item %d is nested deeper than %d levels", l.number+1, maxDepth)
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '[' {
			return l.array(depth)
		}
		return l.object(depth)
	case string:
		l.number++
		return put(l.sink, l.number, t, state.BanItem{})
	case nil:
		return nil
	}
	l.number++
	return l.bad(l.number, fmt.Sprint(t), "is no ban")
}

func (l *jsonList) array(depth int) error {
	for l.More() {
		t, err := l.Token()
		if err != nil {
			return fmt.Errorf("behind item %d: not JSON: %w", l.number, err)
		}
		if err := l.value(t, depth+1); err != nil {
			return err
		}
	}
	_, err := l.Token()
	return err
}

func (l *jsonList) object(depth int) error {
	fields, within := map[string]string{}, false
	for l.More() {
		key, err := l.Token()
		if err != nil {
			return fmt.Errorf("behind item %d: not JSON: %w", l.number, err)
		}
		name, _ := key.(string)
		t, err := l.Token()
		if err != nil {
			return fmt.Errorf("behind item %d: not JSON: %w", l.number, err)
		}
		if t == json.Delim('[') && (name == "bans" || name == "decisions" || name == "data" || name == "new") {
			within = true
			if err := l.array(depth); err != nil {
				return err
			}
			continue
		}
		if d, ok := t.(json.Delim); ok {
			if err := l.skip(d); err != nil {
				return err
			}
			continue
		}
		if ours := fieldOf(name); ours != "" && t != nil && fields[ours] == "" {
			fields[ours] = fmt.Sprint(t)
		}
	}
	if _, err := l.Token(); err != nil {
		return err
	}
	if within {
		return nil
	}
	l.number++
	return record(l.sink, l.number, fields)
}

// skip reads on to the end of what a token has begun.
func (l *jsonList) skip(json.Delim) error {
	for open := 1; open > 0; {
		t, err := l.Token()
		if err != nil {
			return fmt.Errorf("behind item %d: not JSON: %w", l.number, err)
		}
		switch t {
		case json.Delim('['), json.Delim('{'):
			open++
		case json.Delim(']'), json.Delim('}'):
			open--
		}
	}
	return nil
}

// ipset reads what ipset save writes.
type ipset struct {
	timeouts map[string]string // of sets, where entries say nothing
	skipped  map[string]bool   // sets that hold something else than addresses
}

func (i *ipset) line(number int, line string, s sink) error {
	if line == "" || line[0] == '#' {
		return nil
	}
	f, ok := words(line)
	if !ok {
		return s.bad(number, line, "a quote is not closed")
	}
	switch {
	case f[0] == "create" && len(f) >= 3:
		switch f[2] {
		case "hash:ip", "hash:net", "bitmap:ip":
		default:
			i.skipped[f[1]] = true
			return s.bad(number, f[2], "the set %s holds something else than addresses (%s): its entries are left out", f[1], f[2])
		}
		timeout, err := duration(option(f[3:], "timeout"))
		if option(f[3:], "timeout") != "" && err != nil {
			return s.put(Entry{Line: number, Err: err})
		}
		i.timeouts[f[1]] = timeout
		return nil
	case f[0] == "add" && len(f) >= 3:
		if i.skipped[f[1]] {
			return nil
		}
		for _, word := range f[3:] {
			if word == "nomatch" {
				return s.bad(number, f[2], "is an exception (nomatch); set it with levee allow add")
			}
		}
		item := state.BanItem{Reason: tidy(option(f[3:], "comment")), For: i.timeouts[f[1]]}
		if t := option(f[3:], "timeout"); t != "" {
			d, err := duration(t)
			if err != nil {
				return s.put(Entry{Line: number, Err: err})
			}
			item.For = d
		}
		return put(s, number, f[2], item)
	}
	return s.bad(number, f[0], "is neither create nor add, as ipset save writes them")
}

// option returns the word behind a word.
func option(f []string, name string) string {
	for i := 0; i+1 < len(f); i++ {
		if f[i] == name {
			return f[i+1]
		}
	}
	return ""
}

// words splits a line at spaces that are not quoted.
func words(line string) (out []string, ok bool) {
	for line = strings.TrimSpace(line); line != ""; line = strings.TrimSpace(line) {
		if line[0] == '"' {
			end := strings.IndexByte(line[1:], '"')
			if end < 0 {
				return nil, false
			}
			out, line = append(out, line[1:1+end]), line[2+end:]
			continue
		}
		end := strings.IndexAny(line, " \t")
		if end < 0 {
			end = len(line)
		}
		out, line = append(out, line[:end]), line[end:]
	}
	return out, true
}
