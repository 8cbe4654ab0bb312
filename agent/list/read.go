package list

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go4.org/netipx"

	"github.com/levee-xdp/levee/agent/state"
)

// Format is a form that a list has.
type Format string

// The formats.
const (
	Auto    Format = "auto" // found out by how the list begins
	Plain   Format = "plain"
	CSV     Format = "csv"
	JSON    Format = "json"
	IPSet   Format = "ipset"    // of ipset save
	NFT     Format = "nft"      // of nft list set
	NFTJSON Format = "nft-json" // of nft -j list set
)

// Formats are all that can be named.
var Formats = []Format{Auto, Plain, CSV, JSON, IPSet, NFT, NFTJSON}

// maxLine bounds a line, in bytes; maxDepth what JSON is nested in.
const (
	maxLine  = 64 << 10
	maxDepth = 16
)

// Entry is a ban that a list names, or what is wrong with it.
type Entry struct {
	Line int // where it stands, from 1; in JSON the number of the item
	Item state.BanItem
	Err  *state.Error
}

// sink takes entries until it returns false.
type sink func(Entry) bool

// errStop says that nobody wants more.
var errStop = errors.New("stop")

func (s sink) put(e Entry) error {
	if !s(e) {
		return errStop
	}
	return nil
}

func (s sink) bad(line int, value, format string, args ...any) error {
	return s.put(Entry{Line: line, Err: wrong(value, format, args...)})
}

func wrong(value, format string, args ...any) *state.Error {
	if len(value) > 80 {
		value = strings.ToValidUTF8(value[:80], "") + "…"
	}
	return &state.Error{Code: state.CodeInvalid, Value: value, Field: "entry", Detail: fmt.Sprintf(format, args...)}
}

// Read hands over the entries of a list, compressed by gzip or not, until each returns false. Entries
// that make no sense are handed over with an error. Returned are the format, and an error if the list
// as a whole can't be read.
func Read(r io.Reader, f Format, each func(Entry) bool) (Format, error) {
	in := bufio.NewReaderSize(r, maxLine)
	if head, _ := in.Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		unzip, err := gzip.NewReader(in)
		if err != nil {
			return f, fmt.Errorf("gzip: %w", err)
		}
		in = bufio.NewReaderSize(unzip, maxLine)
	}
	if head, _ := in.Peek(3); bytes.Equal(head, []byte("\ufeff")) {
		if _, err := in.Discard(3); err != nil {
			return f, err
		}
	}
	if f == Auto || f == "" {
		head, err := in.Peek(4096)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return f, err
		}
		if f, err = detect(head); err != nil {
			return f, err
		}
	}
	var err error
	switch s := sink(each); f {
	case Plain:
		err = lines(in, s, plainLine)
	case IPSet:
		err = lines(in, s, (&ipset{timeouts: map[string]string{}, skipped: map[string]bool{}}).line)
	case CSV:
		err = readCSV(in, s)
	case JSON:
		err = readJSON(in, s)
	case NFT:
		err = readNFT(in, s)
	case NFTJSON:
		err = readNFTJSON(in, s)
	case Auto:
	default:
		err = fmt.Errorf("the format %q is none of %v", string(f), Formats)
	}
	if errors.Is(err, errStop) {
		err = nil
	}
	return f, err
}

// detect finds out a list's format by how it begins.
func detect(head []byte) (Format, error) {
	if bytes.IndexByte(head, 0) >= 0 {
		return "", errors.New("this is no list: it has zero bytes in it")
	}
	text := strings.TrimSpace(string(head))
	switch {
	case strings.HasPrefix(text, "<"):
		return "", errors.New("this is a web page, and no list")
	case strings.HasPrefix(text, "{") || strings.HasPrefix(text, "["):
		if strings.Contains(text, `"nftables"`) {
			return NFTJSON, nil
		}
		return JSON, nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' || strings.HasPrefix(line, "//") {
			continue
		}
		first, _, _ := strings.Cut(line, " ")
		switch {
		case first == "create" || first == "add" && !strings.HasPrefix(line, "add element"):
			return IPSet, nil
		case first == "table" || first == "elements" || first == "set" || strings.HasPrefix(line, "add element"):
			return NFT, nil
		case strings.Contains(line, ","):
			return CSV, nil
		}
		break
	}
	return Plain, nil
}

// lines hands a list over line by line.
func lines(in *bufio.Reader, s sink, each func(number int, line string, s sink) error) error {
	for number := 1; ; number++ {
		line, err := in.ReadSlice('\n')
		tooLong := false
		for errors.Is(err, bufio.ErrBufferFull) {
			tooLong = true
			_, err = in.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("line %d: %w", number, err)
		}
		last := err != nil
		switch {
		case tooLong:
			err = s.bad(number, "", "the line is longer than %d bytes", maxLine)
		case !utf8.Valid(line):
			err = s.bad(number, "", "the line is not valid UTF-8")
		default:
			err = each(number, strings.TrimSpace(string(line)), s)
		}
		if err != nil || last {
			return err
		}
	}
}

// plainLine reads a prefix or a range. Behind it may stand a number, as in lists with a score, or what
// a # or a ; or // begins.
func plainLine(number int, line string, s sink) error {
	if i := strings.IndexAny(line, "#;"); i >= 0 {
		line = line[:i]
	}
	if i := strings.Index(line, "//"); i >= 0 {
		line = line[:i]
	}
	f := strings.Fields(line)
	switch {
	case len(f) == 0:
		return nil
	case len(f) == 3 && f[1] == "-":
		return put(s, number, f[0]+"-"+f[2], state.BanItem{})
	case len(f) == 1:
		return put(s, number, f[0], state.BanItem{})
	case isNumber(f[1]) && len(f) == 2:
		return put(s, number, f[0], state.BanItem{})
	}
	if _, err := netip.ParseAddr(f[1]); err == nil { // start, end and more, as DShield has them
		return put(s, number, f[0]+"-"+f[1], state.BanItem{})
	}
	return s.bad(number, f[0], "is followed by %q; write one prefix or range a line, and a # before comments", strings.Join(f[1:], " "))
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// put hands over what a text names: a prefix, or a range as the prefixes that make it up.
func put(s sink, line int, text string, item state.BanItem) error {
	from, to, isRange := strings.Cut(text, "-")
	if !isRange {
		p, err := state.ParsePrefix(text)
		if err != nil {
			return s.put(Entry{Line: line, Err: state.AsError(err, state.CodeInvalid)})
		}
		item.Prefix = p.String()
		return s.put(Entry{Line: line, Item: item})
	}
	first, err1 := state.ParseAddr(strings.TrimSpace(from))
	last, err2 := state.ParseAddr(strings.TrimSpace(to))
	r := netipx.IPRangeFrom(first, last)
	if err1 != nil || err2 != nil || !r.IsValid() {
		return s.bad(line, text, "is no range of addresses; write 192.0.2.1-192.0.2.9")
	}
	for _, p := range r.Prefixes() {
		item.Prefix = p.String()
		if err := s.put(Entry{Line: line, Item: item}); err != nil {
			return err
		}
	}
	return nil
}

// The names that a column or a field goes by.
var names = map[string][]string{
	"prefix":  {"prefix", "value", "ip", "cidr", "address", "range", "network"},
	"for":     {"for", "duration", "timeout"},
	"expires": {"expires", "until", "expiration"},
	"reason":  {"reason", "scenario", "comment"},
	"origin":  {"origin"},
	"monitor": {"monitor"},
	"type":    {"type"},
	"scope":   {"scope"},
}

// fieldOf says which of ours a column or a field is; empty if none.
func fieldOf(name string) string {
	name = strings.ToLower(strings.TrimSpace(name))
	for ours, theirs := range names {
		if slices.Contains(theirs, name) {
			return ours
		}
	}
	return ""
}

// record hands over what the fields of a record say. Origins that Levee does not know are those of the
// tool that wrote the list, and are left out.
func record(s sink, line int, f map[string]string) error {
	if t := f["type"]; t != "" && t != "ban" {
		if t == "metadata" {
			return nil
		}
		return s.bad(line, t, "is no ban; only those can be taken over")
	}
	if scope := strings.ToLower(f["scope"]); scope != "" && scope != "ip" && scope != "range" {
		return s.bad(line, f["scope"], "is neither an address nor a range")
	}
	if f["prefix"] == "" {
		return s.bad(line, "", "names no prefix")
	}
	item := state.BanItem{Reason: tidy(f["reason"])}
	if _, err := state.ParseOrigin(f["origin"]); err == nil {
		item.Origin = state.Origin(f["origin"])
	}
	switch f["monitor"] {
	case "", "false":
	case "true":
		item.Monitor = true
	default:
		return s.bad(line, f["monitor"], "monitor is neither true nor false")
	}
	switch {
	case f["expires"] != "" && !strings.HasPrefix(f["expires"], "0001-"):
		t, err := time.Parse(time.RFC3339, f["expires"])
		if err != nil {
			return s.bad(line, f["expires"], "is no time, such as 2026-01-02T15:04:05Z")
		}
		item.Expires = t
	case f["for"] != "":
		d, err := duration(f["for"])
		if err != nil {
			return s.put(Entry{Line: line, Err: err})
		}
		item.For = d
	}
	return put(s, line, strings.TrimSpace(f["prefix"]), item)
}

// duration reads a time as ipset, nft, Go and Levee write it; seconds where it has no unit, and nothing
// where it is 0.
func duration(text string) (string, *state.Error) {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		if n == 0 {
			return "", nil
		}
		return state.Duration(time.Duration(n) * time.Second).String(), nil
	}
	units := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour}
	var whole float64
	for rest := text; rest != ""; {
		n := strings.IndexFunc(rest, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
		if n <= 0 {
			return "", wrong(text, "is no time, such as 90s, 4h or 1d2h")
		}
		number, err := strconv.ParseFloat(rest[:n], 64)
		end := n
		for end < len(rest) && rest[end] >= 'a' && rest[end] <= 'z' {
			end++
		}
		unit, ok := units[rest[n:end]]
		if err != nil || !ok {
			return "", wrong(text, "is no time, such as 90s, 4h or 1d2h")
		}
		whole += number * float64(unit)
		rest = rest[end:]
	}
	if whole >= float64(100*365*24*time.Hour) {
		return "", wrong(text, "is longer than 100 years")
	}
	// Whole seconds, and at least one: what has an end must not lose it.
	d := max(time.Duration(whole).Truncate(time.Second), time.Second)
	return state.Duration(d).String(), nil
}

// tidy makes a reason of a comment: on one line, and not too long.
func tidy(text string) string {
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) && !unicode.Is(unicode.Zs, r) { // the state takes none of these
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, ""))
	if len(text) > state.MaxReason {
		text = strings.ToValidUTF8(text[:state.MaxReason], "")
	}
	return strings.TrimSpace(text)
}
