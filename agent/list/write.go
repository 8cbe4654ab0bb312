package list

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/levee-xdp/levee/agent/state"
)

// Written is what became of claims that were written as a list.
type Written struct {
	Entries  int // that the list has
	Monitors int // claims that only monitor, which the format can't say: they were left out
	Shorter  int // bans that end earlier there, as the format has no longer times
}

// The bounds of other tools.
const (
	ipsetLongest = 2147483 * time.Second
	ipsetComment = 255 // bytes
	nftComment   = 128
)

// Write writes claims as a list. Times that are left are counted from now.
func Write(w io.Writer, f Format, now time.Time, claims iter.Seq2[state.Claim, error]) (out Written, err error) {
	b := bufio.NewWriterSize(w, 64<<10)
	switch f {
	case CSV:
		err = writeCSV(b, &out, claims)
	case JSON:
		err = writeJSON(b, &out, claims)
	case Plain, IPSet, NFT, NFTJSON:
		var bans []ban
		if bans, err = merge(&out, claims); err != nil {
			return out, err
		}
		switch f {
		case Plain:
			for _, x := range bans {
				fmt.Fprintln(b, state.PrefixString(x.prefix))
				out.Entries++
			}
		case IPSet:
			writeIPSet(b, &out, now, bans)
		case NFT:
			writeNFT(b, &out, now, apart(bans))
		case NFTJSON:
			err = writeNFTJSON(b, &out, now, apart(bans))
		case Auto, CSV, JSON:
		}
	case Auto:
		fallthrough
	default:
		return out, fmt.Errorf("the format %q can't be written; there are %v", string(f), Formats[1:])
	}
	if err != nil {
		return out, err
	}
	return out, b.Flush()
}

func writeCSV(w io.Writer, out *Written, claims iter.Seq2[state.Claim, error]) error {
	c := csv.NewWriter(w)
	stamp := func(t time.Time) string {
		if t.IsZero() {
			return ""
		}
		return t.UTC().Format(time.RFC3339Nano)
	}
	rows := [][]string{{"prefix", "origin", "actor", "reason", "created", "expires", "monitor"}}
	if err := c.Write(rows[0]); err != nil {
		return err
	}
	for x, err := range claims {
		if err != nil {
			return err
		}
		monitor := ""
		if x.Monitor {
			monitor = "true"
		}
		if err := c.Write([]string{x.Prefix.String(), string(x.Origin), x.Actor, x.Reason, stamp(x.Created), stamp(x.Expires), monitor}); err != nil {
			return err
		}
		out.Entries++
	}
	c.Flush()
	return c.Error()
}

// writeJSON writes an array with an object a line.
func writeJSON(w io.Writer, out *Written, claims iter.Seq2[state.Claim, error]) error {
	before := "[\n"
	for x, err := range claims {
		if err != nil {
			return err
		}
		text, err := json.Marshal(x)
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s%s", before, text); err != nil {
			return err
		}
		before = ",\n"
		out.Entries++
	}
	if out.Entries == 0 {
		_, err := fmt.Fprintln(w, "[]")
		return err
	}
	_, err := fmt.Fprintln(w, "\n]")
	return err
}

// ban is what follows for a prefix from the claims on it.
type ban struct {
	prefix  netip.Prefix
	expires time.Time // zero: never
	reason  string
}

func (b ban) outlasts(o ban) bool {
	return !o.expires.IsZero() && (b.expires.IsZero() || b.expires.After(o.expires))
}

// merge makes one ban of all claims on a prefix, the longest, in order of prefix; the wider goes first.
func merge(out *Written, claims iter.Seq2[state.Claim, error]) ([]ban, error) {
	var bans []ban
	for c, err := range claims {
		switch {
		case err != nil:
			return nil, err
		case c.Monitor:
			out.Monitors++
		default:
			bans = append(bans, ban{c.Prefix, c.Expires, c.Reason})
		}
	}
	slices.SortFunc(bans, func(a, b ban) int {
		switch o := cmp.Or(a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits())); {
		case o != 0:
			return o
		case a.outlasts(b):
			return -1
		case b.outlasts(a):
			return 1
		}
		return cmp.Compare(a.reason, b.reason)
	})
	bans = slices.CompactFunc(bans, func(a, b ban) bool { return a.prefix == b.prefix })
	return bans, nil
}

// apart makes bans of which none contains another, and that ban the same for as long: sets of intervals
// take no others. What lies within a longer ban is left out, and a shorter one is split around it.
func apart(bans []ban) (out []ban) {
	for from := 0; from < len(bans); {
		to := from + 1
		for to < len(bans) && bans[from].prefix.Overlaps(bans[to].prefix) {
			to++
		}
		out = split(out, bans[from], bans[from+1:to])
		from = to
	}
	return out
}

// split adds a ban, and those within it that outlast it.
func split(out []ban, whole ban, within []ban) []ban {
	var longer []ban
	for _, b := range within {
		if b.outlasts(whole) {
			longer = append(longer, b)
		}
	}
	if len(longer) == 0 {
		return append(out, whole)
	}
	if longer[0].prefix == whole.prefix { // a half that somebody else has for longer
		return split(out, longer[0], longer[1:])
	}
	for _, half := range halves(whole.prefix) {
		var mine []ban
		for _, b := range longer {
			if half.Contains(b.prefix.Addr()) {
				mine = append(mine, b)
			}
		}
		out = split(out, ban{half, whole.expires, whole.reason}, mine)
	}
	return out
}

func halves(p netip.Prefix) [2]netip.Prefix {
	bits := p.Bits()
	upper := p.Addr().AsSlice()
	upper[bits/8] |= 0x80 >> (bits % 8)
	addr, _ := netip.AddrFromSlice(upper)
	return [2]netip.Prefix{netip.PrefixFrom(p.Addr(), bits+1), netip.PrefixFrom(addr, bits+1)}
}

// seconds is how many are left, at least one; false if it is without an end.
func (b ban) seconds(now time.Time) (int64, bool) {
	if b.expires.IsZero() {
		return 0, false
	}
	return max(int64((b.expires.Sub(now)+time.Second-1)/time.Second), 1), true
}

// quoted is a comment as other tools take it.
func quoted(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if r == '"' || r == '\\' {
			return '\''
		}
		return r
	}, text)
	for len(text) > most {
		_, size := utf8.DecodeLastRuneInString(text)
		text = text[:len(text)-size]
	}
	return text
}

func families(bans []ban) iter.Seq2[int, []ban] {
	return func(yield func(int, []ban) bool) {
		n, _ := slices.BinarySearchFunc(bans, 6, func(b ban, _ int) int {
			if b.prefix.Addr().Is4() {
				return -1
			}
			return 1
		})
		if yield(4, bans[:n]) {
			yield(6, bans[n:])
		}
	}
}

// writeIPSet writes a set a family, levee4 and levee6, which has no /0: that is written as its halves.
func writeIPSet(w io.Writer, out *Written, now time.Time, bans []ban) {
	for v, list := range families(bans) {
		family := map[int]string{4: "inet", 6: "inet6"}[v]
		fmt.Fprintf(w, "create levee%d hash:net family %s hashsize 1024 maxelem %d timeout 0 comment\n", v, family, max(65536, 2*len(list)))
		for _, b := range list {
			parts := []netip.Prefix{b.prefix}
			if b.prefix.Bits() == 0 {
				two := halves(b.prefix)
				parts = two[:]
			}
			left, ends := b.seconds(now)
			if most := int64(ipsetLongest / time.Second); ends && left > most {
				left = most
				out.Shorter++
			}
			for _, p := range parts {
				fmt.Fprintf(w, "add levee%d %s timeout %d", v, state.PrefixString(p), left)
				if b.reason != "" {
					fmt.Fprintf(w, " comment %q", quoted(b.reason, ipsetComment))
				}
				fmt.Fprintln(w)
				out.Entries++
			}
		}
	}
}

func writeNFT(w io.Writer, out *Written, now time.Time, bans []ban) {
	fmt.Fprintln(w, "table inet levee {")
	for v, list := range families(bans) {
		fmt.Fprintf(w, "\tset ban%d {\n\t\ttype ipv%d_addr\n\t\tflags interval,timeout\n", v, v)
		for i, b := range list {
			if i == 0 {
				fmt.Fprint(w, "\t\telements = { ")
			} else {
				fmt.Fprint(w, ",\n\t\t\t     ")
			}
			fmt.Fprint(w, state.PrefixString(b.prefix))
			if left, ends := b.seconds(now); ends {
				fmt.Fprintf(w, " timeout %ds", left)
			}
			if b.reason != "" {
				fmt.Fprintf(w, " comment \"%s\"", quoted(b.reason, nftComment))
			}
			out.Entries++
		}
		if len(list) > 0 {
			fmt.Fprintln(w, " }")
		}
		fmt.Fprintln(w, "\t}")
	}
	fmt.Fprintln(w, "}")
}

// writeNFTJSON writes commands that nft -j -f takes.
func writeNFTJSON(w io.Writer, out *Written, now time.Time, bans []ban) error {
	fmt.Fprint(w, `{"nftables":[`+"\n"+`{"add":{"table":{"family":"inet","name":"levee"}}}`)
	for v, list := range families(bans) {
		fmt.Fprintf(w, ",\n"+`{"add":{"set":{"family":"inet","name":"ban%d","table":"levee","type":"ipv%d_addr","flags":["interval","timeout"],"elem":[`, v, v)
		for i, b := range list {
			if i > 0 {
				fmt.Fprint(w, ",")
			}
			var val any = b.prefix.Addr().String()
			if !b.prefix.IsSingleIP() {
				val = map[string]any{"prefix": map[string]any{"addr": val, "len": b.prefix.Bits()}}
			}
			if left, ends := b.seconds(now); ends || b.reason != "" {
				elem := map[string]any{"val": val}
				if ends {
					elem["timeout"] = left
				}
				if b.reason != "" {
					elem["comment"] = quoted(b.reason, nftComment)
				}
				val = map[string]any{"elem": elem}
			}
			text, err := json.Marshal(val)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "\n%s", text)
			out.Entries++
		}
		fmt.Fprint(w, "]}}}")
	}
	_, err := fmt.Fprintln(w, "\n]}")
	return err
}
