package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// count writes a number with its thousands apart.
func count[N int | uint64](n N) string {
	s := strconv.FormatUint(uint64(n), 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// short writes a number to three figures: 1.23M.
func short(f float64) string {
	if f < 0 || math.IsNaN(f) || math.IsInf(f, 0) {
		return "?"
	}
	for _, unit := range []string{"", "k", "M", "G", "T", "P", "E"} {
		if f < 999.5 || unit == "E" {
			switch {
			case unit == "" && (f == math.Trunc(f) || f >= 9.95), f >= 99.95:
				return strconv.FormatFloat(f, 'f', 0, 64) + unit
			case f >= 9.995 || unit == "":
				return strconv.FormatFloat(f, 'f', 1, 64) + unit
			}
			return strconv.FormatFloat(f, 'f', 2, 64) + unit
		}
		f /= 1000
	}
	return "?"
}

// bytesOf writes an amount of bytes.
func bytesOf(n uint64) string {
	f := float64(n)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"} {
		if f < 999.5 {
			if unit == "B" || f >= 99.95 {
				return strconv.FormatFloat(f, 'f', 0, 64) + " " + unit
			}
			return strconv.FormatFloat(f, 'f', 1, 64) + " " + unit
		}
		f /= 1024
	}
	return strconv.FormatFloat(f, 'f', 0, 64) + " EiB"
}

// span writes a time in its two largest units.
func span(d time.Duration) string {
	d = max(d, 0)
	if d < time.Second {
		return "<1s"
	}
	units := []struct {
		name string
		unit time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}
	var b strings.Builder
	parts := 0
	for _, u := range units {
		n := int64(d / u.unit)
		d %= u.unit
		if n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
		}
		if n > 0 || parts > 0 {
			parts++
		}
		if parts == 2 {
			break
		}
	}
	return b.String()
}

func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(a.now().Sub(t)) + " ago"
}

// left writes how long something still lasts.
func (a *app) left(expires time.Time) string {
	if expires.IsZero() {
		return "no end"
	}
	d := expires.Sub(a.now())
	if d <= 0 {
		return "ended"
	}
	if d >= time.Second {
		d = d.Round(time.Second)
	}
	return span(d)
}

// until writes when something ends, and how long that is.
func (a *app) until(expires time.Time) string {
	if expires.IsZero() {
		return "until it is taken back"
	}
	return "until " + a.clock(expires) + " (" + a.left(expires) + ")"
}

// clock writes a time on the host's clock; the day where it is not today.
func (a *app) clock(t time.Time) string {
	now := a.now()
	t = t.In(now.Location())
	if t.Year() == now.Year() && t.YearDay() == now.YearDay() {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04:05")
}

// prefixText writes a prefix of an answer as people do: a single address without its length.
func prefixText(s string) string {
	if p, err := state.ParsePrefix(s); err == nil {
		return state.PrefixString(p)
	}
	return s
}

// sampledFor writes how long rates were measured.
func sampledFor(d state.Duration) string {
	t := time.Duration(d)
	if t >= time.Second {
		t = t.Round(100 * time.Millisecond)
	}
	return state.Duration(t.Round(time.Millisecond)).String()
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return count(n) + " " + many
}

// parseFor reads a flag's time, which is 0 or within bounds.
func parseFor(flag, s string, least, most time.Duration) (time.Duration, error) {
	d, err := state.ParseDuration(s)
	if err != nil {
		return 0, inFlag(flag, err)
	}
	if t := time.Duration(d); t != 0 && t < least || t > most {
		return 0, usage("--%s %q: is not within %s and %s", flag, s, state.Duration(least), state.Duration(most))
	}
	return time.Duration(d), nil
}

// inFlag says which flag an error is about.
func inFlag(flag string, err error) error {
	if e := state.AsError(err, state.CodeInvalid); e != nil {
		value := ""
		if e.Value != "" {
			value = " " + strconv.Quote(e.Value)
		}
		return usage("--%s%s: %s", flag, value, e.Detail)
	}
	return nil
}
