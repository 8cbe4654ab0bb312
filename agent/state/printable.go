package state

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Printable makes text that came from elsewhere harmless to whatever shows it: what does not print is
// written as its code. What is longer than most bytes is cut there, with an ellipsis; 0 is no end.
func Printable(s string, most int) string {
	if (most == 0 || len(s) <= most) && printable(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if most != 0 && b.Len() > most {
			b.WriteString("…")
			break
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			q := strconv.QuoteRuneToASCII(r)
			b.WriteString(q[1 : len(q)-1])
		}
		i += size
	}
	return b.String()
}

func printable(s string) bool {
	for _, r := range s {
		if ' ' <= r && r <= '~' { // as nearly all are
			continue
		}
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return false
		}
	}
	return true
}
