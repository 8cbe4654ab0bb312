package state

import (
	"strings"
)

// Origin is who speaks for a claim: `operator`, `api`, `feed:spamhaus`. What stands before the
// colon is its kind, which decides its precedence; what stands after it is a name.
type Origin string

// The kinds of origins. Kernel is who speaks for bans that were found in the kernel when the state
// had been lost.
const (
	OriginOperator Origin = "operator"
	OriginAPI      Origin = "api"
	OriginCrowdSec Origin = "crowdsec"
	OriginFail2ban Origin = "fail2ban"
	OriginFleet    Origin = "fleet"
	OriginFeed     Origin = "feed"
	OriginDetector Origin = "detector"
	OriginKernel   Origin = "kernel"
)

// Their order of precedence: the smaller rank speaks first.
var ranks = map[Origin]int{
	OriginOperator: 1,
	OriginAPI:      2,
	OriginCrowdSec: 2,
	OriginFail2ban: 2,
	OriginFleet:    3,
	OriginFeed:     4,
	OriginDetector: 5,
	OriginKernel:   6,
}

// Kind returns what stands before the colon.
func (o Origin) Kind() Origin {
	kind, _, _ := strings.Cut(string(o), ":")
	return Origin(kind)
}

// Rank is the origin's place in the precedence operator > api > fleet > feed > detector; the
// smaller speaks first.
func (o Origin) Rank() int {
	if r, ok := ranks[o.Kind()]; ok {
		return r
	}
	return len(ranks) + 1
}

// ParseOrigin checks an origin that someone claims to be: a known kind, and after a colon a name
// where one distinguishes (`feed:spamhaus`, `api:gateway-3`).
func ParseOrigin(s string) (Origin, error) {
	o := Origin(s)
	kind, name, hasName := strings.Cut(s, ":")
	const kinds = "operator, api, crowdsec, fail2ban, fleet, feed:NAME or detector"
	switch {
	case s == "":
		return "", invalid("origin", s, "is empty; it is one of %s", kinds)
	case ranks[Origin(kind)] == 0:
		return "", invalid("origin", s, "is not known; it is one of %s, and may carry a name after a colon, as in api:gateway-3", kinds)
	case Origin(kind) == OriginKernel:
		return "", invalid("origin", s, "is Levee's own, for bans found in the kernel")
	case hasName && !nameOK(name):
		return "", invalid("origin", s, "its name may have up to 32 of a-z, 0-9, '.', '_' and '-', and begins with a letter or a digit")
	case Origin(kind) == OriginFeed && !hasName:
		return "", invalid("origin", s, "lacks the feed's name; write feed:NAME")
	}
	return o, nil
}

// nameOK checks the names of origins and limits.
func nameOK(s string) bool {
	if s == "" || len(s) > 32 {
		return false
	}
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}
