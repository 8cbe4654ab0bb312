package state

import (
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Claim is one party's word for a ban. A prefix is banned while at least one claim on it lives.
type Claim struct {
	Prefix  netip.Prefix `json:"prefix" doc:"Whose packets are dropped"`
	Origin  Origin       `json:"origin" doc:"Who speaks" example:"operator"`
	Actor   string       `json:"actor,omitempty" doc:"Who made the call: a user of this host, a token"`
	Reason  string       `json:"reason,omitempty" doc:"Why, in the words of who asked"`
	Created time.Time    `json:"created"`
	Expires time.Time    `json:"expires,omitzero" doc:"Absent: until it is taken back"`
	Monitor bool         `json:"monitor,omitempty" doc:"Count what would be dropped, and pass it"`
}

// Ban is what follows for a prefix from its claims: what the kernel is to enforce.
type Ban struct {
	Prefix  netip.Prefix
	List    uint16 // of the origin whose claim it is
	Monitor bool
	Expires uint64 // ns of CLOCK_MONOTONIC, or Forever
}

// Forever is the monotonic expiry of what does not expire.
const Forever = ^uint64(0)

// MaxReason bounds a reason and an actor, in bytes.
const MaxReason = 256

// Proposal asks for one change of one party's word.
type Proposal struct {
	Prefix  netip.Prefix
	Origin  Origin
	Actor   string
	Reason  string
	For     time.Duration // 0: until it is taken back
	Until   uint64        // when For is over, in ns of CLOCK_MONOTONIC; 0: counted from the commit
	Monitor bool
	Force   bool    // also if it is wider than Widest4 or Widest6
	Bounds  *Bounds // of who asks; nil: none

	Remove bool // take the claim back, instead of making it
	All    bool // with Remove: the claims of all origins
}

// Status says what came of a proposal.
type Status string

// The statuses.
const (
	StatusAdded     Status = "added"
	StatusChanged   Status = "changed"   // the origin had said something else before
	StatusUnchanged Status = "unchanged" // the origin had said just that
	StatusRemoved   Status = "removed"
	StatusRefused   Status = "refused" // Error says why
)

// Outcome is the answer to one proposal.
type Outcome struct {
	Prefix  netip.Prefix
	Status  Status
	Claim   *Claim  // what was made or, for one origin, taken back
	Removed []Claim // every claim that was taken back
	Others  []Claim // claims of other origins that live on the same prefix
	Notes   []string
	Error   *Error

	made Made
}

// Validate checks a proposal, and brings its prefix into canonical form.
func (p *Proposal) Validate() *Error {
	if err := p.validatePrefix(); err != nil {
		return err
	}
	if p.Bounds != nil {
		if err := p.Bounds.check(p); err != nil {
			return err
		}
	}
	if p.Remove && p.All {
		return nil
	}
	if p.Origin != OriginKernel {
		if _, err := ParseOrigin(string(p.Origin)); err != nil {
			return AsError(err, CodeInvalid)
		}
	}
	if p.Remove {
		return nil
	}
	if err := checkText("reason", p.Reason); err != nil {
		return err
	}
	if p.For < 0 || p.For > Longest {
		return invalid("for", Duration(p.For).String(), "is not within 0 and 100 years")
	}
	return nil
}

func (p *Proposal) validatePrefix() *Error {
	prefix, err := Canonical(p.Prefix)
	if err != nil {
		return AsError(err, CodeInvalid)
	}
	p.Prefix = prefix
	if Wide(prefix) && !p.Force && !p.Remove {
		return &Error{Code: CodeRefused, Field: "prefix", Value: prefix.String(),
			Detail: "is wider than /8 (IPv4) or /19 (IPv6); ban it with force if you mean it"}
	}
	return nil
}

func checkText(field, s string) *Error {
	if len(s) > MaxReason {
		return invalid(field, s, "is longer than %d bytes", MaxReason)
	}
	if !utf8.ValidString(s) {
		return invalid(field, "", "is not valid UTF-8")
	}
	for _, c := range s {
		// Spaces of any kind are harmless. Line ends, escapes and what turns text around are not.
		if !unicode.IsPrint(c) && !unicode.Is(unicode.Zs, c) {
			return invalid(field, s, "has a character in it that does not print: %s", strings.Trim(strconv.QuoteRuneToASCII(c), "'"))
		}
	}
	return nil
}
