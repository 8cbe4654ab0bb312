package state

import (
	"net/netip"
	"time"
)

// BulkRequest is what the bans of a bulk have in common. Lines may say otherwise where they are whole
// items.
type BulkRequest struct {
	Origin  Origin
	Reason  string
	For     string
	Expires time.Time
	Monitor bool
	Force   bool // also prefixes wider than Widest4 or Widest6
	Whole   bool // all of the lines, or none
}

// BulkLine is a line of a bulk: a ban that is asked for, or what is wrong with the line.
type BulkLine struct {
	Number int // from 1
	Item   BanItem
	Err    *Error
}

// BulkLines hands over the lines of a bulk, in order, until yield returns false. The error says that
// the lines could not be read to their end.
type BulkLines func(yield func(BulkLine) bool) error

// MaxBulkErrors is how many refusals a BulkResponse names.
const MaxBulkErrors = 1000

// BulkResponse answers a bulk. What was not refused is on disk and in the kernel.
type BulkResponse struct {
	Lines     int         `json:"lines" doc:"That asked for a ban: neither empty nor a comment"`
	Added     int         `json:"added"`
	Changed   int         `json:"changed" doc:"The origin had said something else before"`
	Unchanged int         `json:"unchanged" doc:"The origin had said just that"`
	Refused   int         `json:"refused"`
	Protected int         `json:"protected,omitempty" doc:"How many of the refused would have touched a protected address"`
	Nothing   bool        `json:"nothing,omitempty" doc:"Nothing was changed, since some were refused and all or nothing was asked for"`
	Errors    []BulkError `json:"errors,omitempty" doc:"The first 1000 refusals, in order of their lines"`
}

// BulkError says why a line was refused.
type BulkError struct {
	Line   int    `json:"line" doc:"From 1"`
	Prefix string `json:"prefix,omitempty" doc:"As it was given"`
	Error  *Error `json:"error"`
}

// Refuse counts a refusal, and names it if there were not too many before it.
func (r *BulkResponse) Refuse(line int, prefix string, err *Error) {
	r.Refused++
	if err != nil && err.Code == CodeProtected {
		r.Protected++
	}
	if len(r.Errors) < MaxBulkErrors {
		r.Errors = append(r.Errors, BulkError{line, clip(prefix), err})
	}
}

// Count counts what came of a line that was not refused.
func (r *BulkResponse) Count(s Status) {
	switch s {
	case StatusAdded:
		r.Added++
	case StatusChanged:
		r.Changed++
	case StatusUnchanged:
		r.Unchanged++
	case StatusRemoved, StatusRefused:
	}
}

// Made is what Revert needs to know of a claim that was made.
type Made struct {
	key     key
	list    uint16
	created int64
	before  *entry // what the origin had said
}

// Prefix is that of the claim.
func (m *Made) Prefix() netip.Prefix { return m.key.prefix() }

// Made returns what was made, and whether anything was.
func (o *Outcome) Made() (Made, bool) {
	return o.made, o.Status == StatusAdded || o.Status == StatusChanged
}

// Judge says what would come of proposals, as ProposeBriefly does, and changes nothing.
func (s *Store) Judge(proposals []Proposal, out []Outcome) {
	s.writer.Lock()
	defer s.writer.Unlock()
	c := s.change(len(proposals))
	for i := range proposals {
		c.propose(&proposals[i], &out[i], true)
	}
}
