package state

// AuditEvent is what the audit log is told: a change, or a refusal.
type AuditEvent struct {
	Action  string // what was asked for: an operation's id, as ban or set-limit
	Refused bool   // it was not even tried
	Failed  bool   // it was tried, and did not work out
	Code    Code   // of the refusal or failure
	Reason  string // why it was refused, or in a change why it was asked for
	By      Actor

	Method, Path string // of the request; empty where there was none
	Status       int

	Target string      // the limit, interface or token that it is about
	Value  any         // what it is to be, as JSON
	Bans   []AuditBans // or the prefixes
}

// AuditBans is prefixes of which one thing is to be said.
type AuditBans struct {
	Status   Status   `json:"status"`
	Origin   Origin   `json:"origin,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Expires  string   `json:"expires,omitempty"`
	Code     Code     `json:"code,omitempty"`
	Error    string   `json:"error,omitempty"`
	Prefixes []string `json:"prefixes"`
	Others   int      `json:"others,omitempty"` // how many more of which the same is to be said, and that are not named
}

// Same tells whether two say the same of their prefixes.
func (b *AuditBans) Same(o *AuditBans) bool {
	return b.Status == o.Status && b.Origin == o.Origin && b.Reason == o.Reason && b.Expires == o.Expires && b.Code == o.Code && b.Error == o.Error
}
