package state

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Rate is a number of packets or bits in a time, as people write it: 20k/s, 100/m, 200Mbit/s.
type Rate struct {
	Count uint64
	Per   time.Duration
	Bits  bool // counts bits, not packets
}

// The rates between which the kernel's arithmetic is exact.
const (
	minBitsPerSecond    = 1000
	maxBitsPerSecond    = 100e9
	minPacketsPerSecond = 1.0 / 3600
	maxPacketsPerSecond = 10e6
)

// ParseRate reads a rate. Fractions are fine where they come out whole: 1.5k/s is 1500/s.
func ParseRate(s string) (Rate, error) {
	const forms = "write packets as 20k/s or 100/m, bits as 200Mbit/s"
	amount, per, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok {
		return Rate{}, invalid("rate", s, "has no time; %s", forms)
	}
	var r Rate
	switch strings.TrimSpace(per) {
	case "s":
		r.Per = time.Second
	case "m", "min":
		r.Per = time.Minute
	case "h":
		r.Per = time.Hour
	default:
		return Rate{}, invalid("rate", s, "its time %q is none of s, m and h; %s", clip(per), forms)
	}
	number, unit := splitNumber(amount)
	if u, isBits := strings.CutSuffix(unit, "bit"); isBits {
		unit, r.Bits = u, true
	} else if isByteUnit(unit) {
		return Rate{}, invalid("rate", s, "counts bytes; rates are in packets or bits: %s", forms)
	}
	count, ok := scaled(number, unit)
	if !ok {
		return Rate{}, invalid("rate", s, "is not a rate; %s", forms)
	}
	r.Count = count
	if low, high := r.bounds(); r.PerSecond() < low || r.PerSecond() > high {
		if r.Bits {
			return Rate{}, invalid("rate", s, "is not within 1kbit/s to 100Gbit/s")
		}
		return Rate{}, invalid("rate", s, "is not within 1/h to 10M/s")
	}
	return r, nil
}

func (r Rate) bounds() (low, high float64) {
	if r.Bits {
		return minBitsPerSecond, maxBitsPerSecond
	}
	return minPacketsPerSecond, maxPacketsPerSecond
}

// PerSecond returns packets or bits per second.
func (r Rate) PerSecond() float64 {
	if r.Per == 0 {
		return 0
	}
	return float64(r.Count) / r.Per.Seconds()
}

// String writes the rate as ParseRate reads it.
func (r Rate) String() string {
	per := "s"
	switch r.Per {
	case time.Minute:
		per = "m"
	case time.Hour:
		per = "h"
	default:
	}
	unit := ""
	if r.Bits {
		unit = "bit"
	}
	return shorten(r.Count) + unit + "/" + per
}

// MarshalText writes the rate as String does.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads a rate as ParseRate does.
func (r *Rate) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRate(string(b))
	return err
}

// Burst is an amount of packets or bits: 40k, 16Mbit, 256KiB. Zero means that none was given.
type Burst struct {
	Units uint64 // packets or bits
	Bits  bool
}

// ParseBurst reads an amount: a bare number is packets; bit, B, kB, MB, KiB, MiB make it bits.
func ParseBurst(s string) (Burst, error) {
	number, unit := splitNumber(strings.TrimSpace(s))
	if isByteUnit(unit) {
		factor := uint64(8)
		switch unit {
		case "KiB":
			factor, unit = 8<<10, ""
		case "MiB":
			factor, unit = 8<<20, ""
		case "GiB":
			factor, unit = 8<<30, ""
		default:
			unit = strings.TrimSuffix(unit, "B")
		}
		if n, ok := scaled(number, unit); ok && n > 0 && n <= math.MaxInt64/factor {
			return Burst{Units: n * factor, Bits: true}, nil
		}
	} else {
		unit, isBits := strings.CutSuffix(unit, "bit")
		if n, ok := scaled(number, unit); ok && n > 0 && n <= math.MaxInt64 {
			return Burst{Units: n, Bits: isBits}, nil
		}
	}
	return Burst{}, invalid("burst", s, "is not an amount; write packets as 40k, bits as 16Mbit or 256KiB")
}

// String writes the amount as ParseBurst reads it.
func (b Burst) String() string {
	switch {
	case !b.Bits:
		return shorten(b.Units)
	case b.Units%1000 != 0 && b.Units%(8<<20) == 0:
		return strconv.FormatUint(b.Units/(8<<20), 10) + "MiB"
	case b.Units%1000 != 0 && b.Units%(8<<10) == 0:
		return strconv.FormatUint(b.Units/(8<<10), 10) + "KiB"
	}
	return shorten(b.Units) + "bit"
}

// MarshalText writes the amount as String does.
func (b Burst) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads an amount as ParseBurst does.
func (b *Burst) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBurst(string(text))
	return err
}

// Duration is a time as people write it: 4h, 1d, 1h30m, 250ms.
type Duration time.Duration

var durationUnits = []struct {
	name string
	unit time.Duration
}{
	{"w", 7 * 24 * time.Hour},
	{"d", 24 * time.Hour},
	{"h", time.Hour},
	{"m", time.Minute},
	{"s", time.Second},
	{"ms", time.Millisecond},
	{"us", time.Microsecond},
	{"ns", time.Nanosecond},
}

// Longest is the longest time that anything is set to last; beyond it, it is meant to last forever.
const Longest = 100 * 365 * 24 * time.Hour

// ParseDuration reads numbers with the units w, d, h, m, s, ms, one after another: 1d12h. It is
// never negative.
func ParseDuration(s string) (Duration, error) {
	const forms = "write 90s, 15m, 4h, 1d or 1h30m"
	rest := strings.TrimSpace(s)
	if rest == "0" {
		return 0, nil
	}
	if rest == "" {
		return 0, invalid("duration", s, "is empty; %s", forms)
	}
	var total float64
	for rest != "" {
		number, after := splitNumber(rest)
		end := 0
		for end < len(after) && after[end] >= 'a' && after[end] <= 'z' {
			end++
		}
		n, err := strconv.ParseFloat(number, 64)
		if err != nil || number[0] == '-' || number[0] == '+' {
			return 0, invalid("duration", s, "is not a time; %s", forms)
		}
		unit := time.Duration(0)
		for _, u := range durationUnits {
			if u.name == after[:end] {
				unit = u.unit
			}
		}
		if unit == 0 {
			if after == "" {
				return 0, invalid("duration", s, "has no unit; %s", forms)
			}
			return 0, invalid("duration", s, "its unit %q is none of w, d, h, m, s and ms; %s", clip(after[:max(end, 1)]), forms)
		}
		total += n * float64(unit)
		rest = after[end:]
	}
	if total > float64(Longest) {
		return 0, invalid("duration", s, "is longer than 100 years; leave it out for what has no end")
	}
	return Duration(math.Round(total)), nil
}

// String writes the time as ParseDuration reads it.
func (d Duration) String() string {
	if d == 0 {
		return "0s"
	}
	var b strings.Builder
	rest := time.Duration(d)
	if rest < 0 {
		b.WriteByte('-')
		rest = -rest
	}
	for _, u := range durationUnits[1:] {
		if n := int64(rest / u.unit); n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest %= u.unit
		}
	}
	return b.String()
}

// MarshalText writes the time as String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads a time as ParseDuration does.
func (d *Duration) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDuration(string(b))
	return err
}

// ParseCount reads a number with k, M or G after it: 512k, 1M.
func ParseCount(s string) (uint64, error) {
	number, unit := splitNumber(strings.TrimSpace(s))
	n, ok := scaled(number, unit)
	if !ok {
		return 0, invalid("number", s, "is not a number; write 65536, 512k or 1M")
	}
	return n, nil
}

// Count is a number that may be written with k, M or G after it.
type Count uint64

// String writes the number in full.
func (c Count) String() string { return strconv.FormatUint(uint64(c), 10) }

// MarshalText writes the number in full.
func (c Count) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText reads a number as ParseCount does.
func (c *Count) UnmarshalText(b []byte) error {
	n, err := ParseCount(string(b))
	*c = Count(n)
	return err
}

// splitNumber cuts what may be a decimal number off the front.
func splitNumber(s string) (number, rest string) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	if i == 0 && s != "" && (s[0] == '-' || s[0] == '+') {
		i = 1
		for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
			i++
		}
	}
	if i == 0 {
		return "!", s // no number is one of these
	}
	return s[:i], strings.TrimLeft(s[i:], " ")
}

func isByteUnit(u string) bool {
	switch u {
	case "B", "kB", "KB", "MB", "GB", "TB", "KiB", "MiB", "GiB":
		return true
	}
	return false
}

var scales = []struct {
	suffix string
	factor uint64
}{{"T", 1e12}, {"G", 1e9}, {"M", 1e6}, {"k", 1e3}}

// scaled applies k, K, M, G or T to a decimal number, which must come out whole.
func scaled(number, suffix string) (uint64, bool) {
	factor := uint64(1)
	if suffix == "K" {
		suffix = "k"
	}
	if suffix != "" {
		factor = 0
		for _, s := range scales {
			if s.suffix == suffix {
				factor = s.factor
			}
		}
		if factor == 0 {
			return 0, false
		}
	}
	whole, fraction, _ := strings.Cut(number, ".")
	if len(fraction) > 12 || strings.Contains(fraction, ".") || whole == "" {
		return 0, false
	}
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil || n > math.MaxUint64/factor {
		return 0, false
	}
	n *= factor
	if fraction != "" {
		f, err := strconv.ParseUint(fraction, 10, 64)
		if err != nil {
			return 0, false
		}
		unit := uint64(math.Pow10(len(fraction)))
		if f != 0 && f > math.MaxUint64/factor || f*factor%unit != 0 {
			return 0, false
		}
		more := f * factor / unit
		if n > math.MaxUint64-more {
			return 0, false
		}
		n += more
	}
	return n, true
}

// shorten writes a number with the largest suffix that keeps it exact.
func shorten(n uint64) string {
	for _, s := range scales {
		if n >= s.factor && n%s.factor == 0 {
			return strconv.FormatUint(n/s.factor, 10) + s.suffix
		}
	}
	return strconv.FormatUint(n, 10)
}
