package list

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// nftText reads what nft list prints, word by word: the elements of sets of addresses, and nothing else.
type nftText struct {
	in      *bufio.Reader
	line    int
	quoted  bool // the last word was
	kind    string
	timeout string // of the set
}

func readNFT(in *bufio.Reader, s sink) error {
	n := &nftText{in: in, line: 1}
	for {
		word, err := n.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n.line, err)
		}
		if n.quoted {
			continue
		}
		switch word {
		case "set", "map":
			n.kind, n.timeout = "", ""
		case "type":
			if n.kind, err = n.rest(); err != nil {
				return fmt.Errorf("line %d: %w", n.line, err)
			}
		case "timeout":
			text, err := n.next()
			if err != nil {
				return fmt.Errorf("line %d: %w", n.line, err)
			}
			if d, err := duration(text); err == nil {
				n.timeout = d
			}
		case "flags": // one of them is called timeout
			if _, err := n.rest(); err != nil {
				return fmt.Errorf("line %d: %w", n.line, err)
			}
		case "elements", "element":
			if word == "element" { // of a set that was made elsewhere
				n.kind, n.timeout = "", ""
			}
			if err := n.elements(s); err != nil {
				return err
			}
		}
	}
}

// next returns a word, or one of { } , ; alone. What a # begins is left out, up to the line's end.
func (n *nftText) next() (string, error) {
	var b strings.Builder
	n.quoted = false
	for {
		c, err := n.in.ReadByte()
		if err != nil {
			if b.Len() > 0 && errors.Is(err, io.EOF) {
				return b.String(), nil
			}
			return "", err
		}
		switch {
		case c == '"' && b.Len() == 0:
			n.quoted = true
			text, err := n.in.ReadSlice('"')
			if err != nil {
				return "", errors.New("a quote is not closed")
			}
			n.line += strings.Count(string(text), "\n")
			return string(text[:len(text)-1]), nil
		case c == ' ' || c == '\t' || c == '\r' || c == '\n' || c == '#':
			if b.Len() > 0 {
				return b.String(), n.in.UnreadByte()
			}
			if c == '#' {
				if _, err := n.in.ReadSlice('\n'); err != nil {
					return "", err
				}
				c = '\n'
			}
			if c == '\n' {
				n.line++
			}
		case c == '{' || c == '}' || c == ',' || c == ';':
			if b.Len() > 0 {
				return b.String(), n.in.UnreadByte()
			}
			return string(c), nil
		default:
			if b.Len() >= maxLine {
				return "", fmt.Errorf("a word is longer than %d bytes", maxLine)
			}
			b.WriteByte(c)
		}
	}
}

// rest returns the words up to the end of a line.
func (n *nftText) rest() (string, error) {
	text, err := n.in.ReadSlice('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	n.line++
	return strings.TrimRight(strings.TrimSpace(string(text)), ";"), nil
}

// elements reads those of a set, up to the bracket that closes them.
func (n *nftText) elements(s sink) error {
	for word := ""; word != "{" || n.quoted; { // = {, or the family, table and set's name
		var err error
		if word, err = n.next(); err != nil {
			return fmt.Errorf("line %d: the elements have no beginning", n.line)
		}
	}
	other := n.kind != "" && n.kind != "ipv4_addr" && n.kind != "ipv6_addr"
	var element []string
	line := n.line
	for {
		word, err := n.next()
		if err != nil {
			return fmt.Errorf("line %d: the elements have no end", n.line)
		}
		if (word == "," || word == "}") && !n.quoted {
			if len(element) > 0 && !other {
				if err := n.element(s, line, element); err != nil {
					return err
				}
			}
			if element = element[:0]; word == "}" {
				return nil
			}
			continue
		}
		if len(element) == 0 {
			line = n.line
		}
		if element = append(element, word); len(element) > 64 {
			return fmt.Errorf("line %d: an element has more than 64 words", line)
		}
	}
}

func (n *nftText) element(s sink, line int, f []string) error {
	item := state.BanItem{Reason: tidy(option(f[1:], "comment")), For: n.timeout}
	// What is left of a timeout goes before what it once was.
	for _, name := range []string{"expires", "timeout"} {
		if text := option(f[1:], name); text != "" {
			d, err := duration(text)
			if err != nil {
				return s.put(Entry{Line: line, Err: err})
			}
			item.For = d
			break
		}
	}
	if len(f) > 1 && (f[1] == "." || f[1] == ":") {
		return s.bad(line, strings.Join(f, " "), "is more than an address: only sets of addresses can be taken over")
	}
	return put(s, line, f[0], item)
}

// readNFTJSON reads what nft -j list prints.
func readNFTJSON(in *bufio.Reader, s sink) error {
	l := &jsonList{Decoder: json.NewDecoder(in), sink: s}
	l.UseNumber()
	err := l.nftValue(0, "", &nftSet{})
	if errors.Is(err, io.EOF) {
		return errors.New("the list ends before it is complete")
	}
	return err
}

type nftSet struct{ kind, timeout string }

// nftValue walks down to the elements of sets.
func (l *jsonList) nftValue(depth int, name string, set *nftSet) error {
	if depth > maxDepth {
		return fmt.Errorf("it is nested deeper than %d levels", maxDepth)
	}
	t, err := l.Token()
	if err != nil {
		return err
	}
	switch t := t.(type) {
	case json.Delim:
		if t == '{' {
			if name == "set" || name == "map" || name == "element" {
				set = &nftSet{}
			}
			for l.More() {
				key, err := l.Token()
				if err != nil {
					return err
				}
				if err := l.nftValue(depth+1, fmt.Sprint(key), set); err != nil {
					return err
				}
			}
			_, err = l.Token()
			return err
		}
		for l.More() {
			if name == "elem" {
				err = l.nftElement(set)
			} else {
				err = l.nftValue(depth+1, "", set)
			}
			if err != nil {
				return err
			}
		}
		_, err = l.Token()
		return err
	case string:
		if name == "type" {
			set.kind = t
		}
	case json.Number:
		if name == "timeout" {
			set.timeout, _ = duration(t.String())
		}
	}
	return nil
}

// nftElement reads an element: an address, a prefix, a range, or one of them with what is said of it.
func (l *jsonList) nftElement(set *nftSet) error {
	var raw json.RawMessage
	if err := l.Decode(&raw); err != nil {
		return err
	}
	if set.kind != "" && set.kind != "ipv4_addr" && set.kind != "ipv6_addr" {
		return nil
	}
	l.number++
	item := state.BanItem{For: set.timeout}
	var said struct {
		Elem *struct {
			Val     json.RawMessage `json:"val"`
			Timeout json.Number     `json:"timeout"`
			Expires json.Number     `json:"expires"`
			Comment string          `json:"comment"`
		} `json:"elem"`
	}
	if json.Unmarshal(raw, &said) == nil && said.Elem != nil {
		raw, item.Reason = said.Elem.Val, tidy(said.Elem.Comment)
		for _, n := range []json.Number{said.Elem.Timeout, said.Elem.Expires} {
			if n == "" {
				continue
			}
			d, err := duration(n.String())
			if err != nil {
				return l.put(Entry{Line: l.number, Err: err})
			}
			item.For = d
		}
	}
	var text string
	var shape struct {
		Prefix *struct {
			Addr string `json:"addr"`
			Len  int    `json:"len"`
		} `json:"prefix"`
		Range []string `json:"range"`
	}
	switch {
	case json.Unmarshal(raw, &text) == nil:
	case json.Unmarshal(raw, &shape) == nil && shape.Prefix != nil:
		text = fmt.Sprintf("%s/%d", shape.Prefix.Addr, shape.Prefix.Len)
	case len(shape.Range) == 2:
		text = shape.Range[0] + "-" + shape.Range[1]
	default:
		return l.bad(l.number, string(raw), "is neither an address, nor a prefix, nor a range")
	}
	return put(l.sink, l.number, text, item)
}
