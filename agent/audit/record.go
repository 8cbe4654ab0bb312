package audit

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// ecsVersion is the version of the Elastic Common Schema whose fields are used.
const ecsVersion = "8.17.0"

// What a string of a record's may have, in bytes: none of them is Levee's own to bound.
const maxText = 512

// maxValue bounds a value of a record's, in bytes of JSON.
const maxValue = 16 << 10

// Record is one line of the log. Its fields are those of the Elastic Common Schema; what that has no
// name for stands under levee.
type Record struct {
	Time      time.Time  `json:"@timestamp"`
	ECS       ecs        `json:"ecs"`
	Event     event      `json:"event"`
	Message   string     `json:"message"`
	User      *user      `json:"user,omitempty"`
	Process   *process   `json:"process,omitempty"`
	Source    *source    `json:"source,omitempty"`
	UserAgent *userAgent `json:"user_agent,omitempty"`
	HTTP      *httpField `json:"http,omitempty"`
	URL       *urlField  `json:"url,omitempty"`
	Levee     levee      `json:"levee"`
}

type ecs struct {
	Version string `json:"version"`
}

type event struct {
	Kind     string   `json:"kind"`
	Module   string   `json:"module"`
	Dataset  string   `json:"dataset"`
	Category []string `json:"category"`
	Type     []string `json:"type"`
	Action   string   `json:"action"`
	Outcome  string   `json:"outcome"`
	Code     string   `json:"code,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Sequence uint64   `json:"sequence"`
}

type user struct {
	Name  string   `json:"name,omitempty"`
	ID    string   `json:"id,omitempty"`
	Roles []string `json:"roles,omitempty"`
}

type process struct {
	PID int32 `json:"pid"`
}

type source struct {
	IP   string `json:"ip"`
	Port uint16 `json:"port,omitempty"`
}

type userAgent struct {
	Original string `json:"original"`
}

type httpField struct {
	Request struct {
		Method string `json:"method"`
	} `json:"request"`
	Response struct {
		Status int `json:"status_code,omitempty"`
	} `json:"response"`
}

type urlField struct {
	Path string `json:"path"`
}

type levee struct {
	Actor      string            `json:"actor,omitempty"` // the kind of who asks
	Target     string            `json:"target,omitempty"`
	Value      json.RawMessage   `json:"value,omitempty"`
	Bans       []state.AuditBans `json:"bans,omitempty"`
	Part       int               `json:"part,omitempty"` // of Parts, where one change takes several records
	Parts      int               `json:"parts,omitempty"`
	Suppressed uint64            `json:"suppressed,omitempty"` // refusals of this kind that were only counted
	Previous   string            `json:"previous"`             // SHA-256 of the line before, in hexadecimal
}

// partPrefixes bounds the prefixes of one record. A change of more takes several.
const partPrefixes = 1000

// records makes what is to be written of an event, but for the chain.
func records(e *state.AuditEvent, now time.Time) []Record {
	r := Record{Time: now.UTC(), ECS: ecs{ecsVersion},
		Event: event{Kind: "event", Module: "levee", Dataset: "levee.audit", Action: clean(e.Action), Outcome: "success",
			Code: string(e.Code), Reason: clean(e.Reason)},
		Levee: levee{Actor: string(e.By.Kind), Target: clean(e.Target)}}
	done, refused, first := tally(e.Bans)
	if e.Refused || e.Failed || done == 0 && refused > 0 {
		r.Event.Outcome = "failure"
		if first != nil && r.Event.Code == "" {
			r.Event.Code, r.Event.Reason = string(first.Code), clean(first.Error)
		}
	}
	r.Event.Category, r.Event.Type = kindOf(e)
	if e.By.Name != "" || e.By.ID != "" {
		r.User = &user{Name: clean(e.By.Name), ID: clean(e.By.ID)}
		for _, s := range e.By.Scopes {
			r.User.Roles = append(r.User.Roles, string(s))
		}
	}
	if e.By.PID != 0 {
		r.Process = &process{e.By.PID}
	}
	if e.By.Address.IsValid() {
		r.Source = &source{e.By.Address.Addr().Unmap().WithZone("").String(), e.By.Address.Port()}
	}
	if e.By.Agent != "" {
		r.UserAgent = &userAgent{clean(e.By.Agent)}
	}
	if e.Method != "" {
		r.HTTP, r.URL = &httpField{}, &urlField{clean(e.Path)}
		r.HTTP.Request.Method, r.HTTP.Response.Status = clean(e.Method), e.Status
	}
	if e.Value != nil {
		r.Levee.Value = valueOf(e.Value)
	}
	r.Message = message(e)
	parts := split(e.Bans)
	if len(parts) == 0 {
		return []Record{r}
	}
	out := make([]Record, len(parts))
	for i, bans := range parts {
		out[i] = r
		out[i].Levee.Bans = bans
		if len(parts) > 1 {
			out[i].Levee.Part, out[i].Levee.Parts = i+1, len(parts)
		}
	}
	return out
}

// leftOut stands for a value that is too large for a record. By its hash it can be told whether a value that
// somebody has is the one.
type leftOut struct {
	LeftOut string `json:"left_out"` // why
	Bytes   int    `json:"bytes,omitempty"`
	SHA256  string `json:"sha256,omitempty"` // of the value as JSON, in hexadecimal
}

// valueOf is a value as JSON, or what is to be said in its place.
func valueOf(v any) json.RawMessage {
	text, err := json.Marshal(v)
	var instead leftOut
	switch {
	case err != nil:
		instead.LeftOut = "it can't be written: " + clean(err.Error())
	case len(text) <= maxValue:
		return text
	default:
		instead = leftOut{"it is too large", len(text), fmt.Sprintf("%x", sha256.Sum256(text))}
	}
	text, _ = json.Marshal(instead) // it is no more than text and a number
	return text
}

// split deals prefixes out to records.
func split(bans []state.AuditBans) (parts [][]state.AuditBans) {
	room := 0
	for _, b := range bans {
		b.Reason, b.Error, b.Origin = clean(b.Reason), clean(b.Error), state.Origin(clean(string(b.Origin)))
		rest, others := b.Prefixes, b.Others
		for len(rest) > 0 || others > 0 {
			if room == 0 {
				parts, room = append(parts, nil), partPrefixes
			}
			n := min(room, len(rest))
			b.Prefixes = make([]string, n)
			for i := range n {
				b.Prefixes[i] = clean(rest[i])
			}
			b.Others, others = others, 0
			last := len(parts) - 1
			parts[last] = append(parts[last], b)
			rest, room = rest[n:], room-n
		}
	}
	return parts
}

// kindOf sorts an event into the schema's categories.
func kindOf(e *state.AuditEvent) (category, kind []string) {
	switch {
	case e.Refused && e.Code == state.CodeUnauthorized:
		return []string{"authentication"}, []string{"start", "denied"}
	case e.Refused:
		return []string{"api"}, []string{"denied"}
	case strings.Contains(e.Action, "token"):
		category = []string{"iam"}
	default:
		category = []string{"configuration"}
	}
	switch e.Action {
	case "ban", "allow", "add-token", "attach":
		return category, []string{"creation"}
	case "unban", "unban-origin", "unallow", "remove-limit", "remove-token", "detach":
		return category, []string{"deletion"}
	}
	return category, []string{"change"}
}

// tally counts the prefixes of which something was done and those that were refused, and returns the
// first refusal.
func tally(bans []state.AuditBans) (done, refused int, first *state.AuditBans) {
	for i := range bans {
		if bans[i].Status != state.StatusRefused {
			done += len(bans[i].Prefixes) + bans[i].Others
			continue
		}
		if refused += len(bans[i].Prefixes) + bans[i].Others; first == nil {
			first = &bans[i]
		}
	}
	return done, refused, first
}

// Refused tells whether the record is of something that was refused or did not work out, as a whole or
// in part.
func (r *Record) Refused() bool {
	_, refused, _ := tally(r.Levee.Bans)
	return r.Event.Outcome == "failure" || refused > 0
}

func message(e *state.AuditEvent) string {
	who := clean(e.By.String())
	if who == "" {
		who = "somebody unknown"
	}
	done, refused, _ := tally(e.Bans)
	one := ""
	for _, b := range e.Bans {
		if len(b.Prefixes) > 0 {
			one = clean(b.Prefixes[0])
		}
	}
	what := clean(e.Action)
	switch {
	case done+refused == 1:
		what += " " + one
	case done+refused > 1:
		what += fmt.Sprintf(" of %d prefixes", done+refused)
	case e.Target != "":
		what += " " + clean(e.Target)
	}
	switch {
	case e.Refused || done == 0 && refused > 0:
		return who + ": " + what + " refused"
	case e.Failed:
		return who + ": " + what + " failed"
	case refused > 0:
		return fmt.Sprintf("%s: %s, %d of them refused", who, what, refused)
	}
	return who + ": " + what
}

// clean makes text that came from elsewhere harmless to whatever shows it: what does not print is
// written as its code, and there is an end to it.
func clean(s string) string { return state.Printable(s, maxText) }
