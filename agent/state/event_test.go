package state

import (
	"encoding/json"
	"net/netip"
	"testing"
)

func TestEventFilter(t *testing.T) {
	ban := &Event{Kind: EventDecision, Decision: &Decision{About: AboutBan, Subject: "192.0.2.0/25"}}
	limit := &Event{Kind: EventDecision, Decision: &Decision{About: AboutLimit, Subject: "web"}}
	drop := &Event{Kind: EventDrop, Drop: &EventView{Source: netip.MustParseAddr("192.0.2.1")}}
	strange := &Event{Kind: EventDrop, Drop: &EventView{}}
	lost := &Event{Kind: EventLost, Lost: &LostEvents{}}
	all := []*Event{ban, limit, drop, strange, lost}
	within := func(s string) EventFilter { return EventFilter{Within: netip.MustParsePrefix(s)} }
	for name, tt := range map[string]struct {
		filter EventFilter
		want   [5]bool
	}{
		"all":        {EventFilter{}, [5]bool{true, true, true, true, true}},
		"decisions":  {EventFilter{Kinds: []EventKind{EventDecision}}, [5]bool{true, true, false, false, true}},
		"both kinds": {EventFilter{Kinds: []EventKind{EventDecision, EventDrop}}, [5]bool{true, true, true, true, true}},
		"around":     {within("192.0.2.0/24"), [5]bool{true, false, true, false, true}},
		"inside":     {within("192.0.2.1/32"), [5]bool{true, false, true, false, true}},
		"beside":     {within("192.0.2.128/25"), [5]bool{false, false, false, false, true}},
		"IPv6":       {within("::/0"), [5]bool{false, false, false, false, true}},
	} {
		for i, e := range all {
			if got := tt.filter.Wants(e); got != tt.want[i] {
				t.Errorf("%s: event %d: %t", name, i, got)
			}
		}
	}
}

// An id that is read is written as it was, and as JSON, too.
func FuzzEventID(f *testing.F) {
	for _, s := range []string{"5f3a-17", "a-0", "-1", "a-01", "a-+1", "a-18446744073709551615", "a-18446744073709551616", "A-1", "a-1-2", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		id, err := ParseEventID(s)
		if err != nil {
			return
		}
		if id.String() != s {
			t.Fatalf("%q became %q", s, id)
		}
		text, err := json.Marshal(Event{ID: id})
		var again Event
		if err != nil || json.Unmarshal(text, &again) != nil || again.ID != id {
			t.Fatalf("%q as JSON: %s, %v", s, text, err)
		}
	})
}

// A cursor that is read is written as it was, and nothing that a client sends as one does harm.
func FuzzCursor(f *testing.F) {
	p := place{created: 1e18, key: keyOf(netip.MustParsePrefix("2001:db8::/32")), list: 7}
	for _, s := range []string{p.String(), "", "0", "x", p.String() + "0", "-1.-1.-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, ok := parsePlace(s)
		if !ok {
			return
		}
		if again, ok := parsePlace(p.String()); !ok || again.compare(p) != 0 {
			t.Fatalf("%q: %+v became %+v", s, p, again)
		}
	})
}

// No text but the one that was told is a token.
func FuzzToken(f *testing.F) {
	store, err := Open(Config{Path: f.TempDir() + "/state.db"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := store.Close(); err != nil {
			f.Error(err)
		}
	})
	made, err := store.AddToken(TokenRequest{Name: "gateway", Scopes: []Scope{ScopeRead}}, "root")
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{"", "levee_", made.Secret[:len(made.Secret)-1], made.Secret + "A", made.Secret[:23] + "_" + made.Secret[24:], " " + made.Secret} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if by, err := store.Authenticate(s, netip.Addr{}); err == nil && s != made.Secret {
			t.Fatalf("%q is taken for %v", s, by)
		}
	})
}
