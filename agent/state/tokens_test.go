package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

var testFrom = netip.MustParseAddr("::ffff:198.51.100.7")

func (h *harness) token(r TokenRequest) TokenSecret {
	h.Helper()
	t, err := h.AddToken(r, "root")
	if err != nil {
		h.Fatal(err)
	}
	return t
}

// good tells whether a token's text proves who shows it, and for what reason not.
func (h *harness) good(text string) string {
	h.Helper()
	a, err := h.Authenticate(text, testFrom)
	if err == nil {
		return a.String()
	}
	e, ok := errors.AsType[*TokenError](err)
	if !ok || a.Kind != "" || len(a.Scopes) > 0 {
		h.Errorf("%v, %+v", err, a)
	}
	return e.Reason
}

func TestTokens(t *testing.T) {
	h := open(t)
	made := h.token(TokenRequest{Name: "gateway", Scopes: []Scope{ScopeBan, ScopeRead}, For: "30d"})
	if b := made.Bounds; b == nil || b.IPv4 != 32 || b.IPv6 != 64 || time.Duration(b.Longest) != 24*time.Hour || b.Claims == 0 || b.Origins[0] != "api:gateway" {
		t.Errorf("bounds %+v", made.Bounds)
	}
	if made.Owner != "root" || made.Expires.Sub(made.Created) != 30*24*time.Hour {
		t.Errorf("%+v", made.Token)
	}
	if got := h.good(made.Secret); got != "token:gateway" {
		t.Error(got)
	}
	a, _ := h.Authenticate(made.Secret, testFrom)
	if !a.May(ScopeBan) || a.May(ScopeAdmin) || a.ID != made.ID || a.Bounds == nil {
		t.Errorf("%+v", a)
	}
	h.reopen()
	if got := h.good(made.Secret); got != "token:gateway" {
		t.Error("after a restart: " + got)
	}
	// No part of the secret is on disk, and when it was used is.
	file, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	if secret := made.Secret[len(made.Secret)-tokenSecret:]; bytes.Contains(file, []byte(secret)) || bytes.Contains(file, []byte(secret[:12])) {
		t.Error("the file has the secret in it")
	}
	if err := h.NoteUse(); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if l := h.Tokens(); len(l) != 1 || !l[0].LastUsed.Equal(h.clock.Now()) || l[0].LastFrom != netip.MustParseAddr("198.51.100.7") {
		t.Errorf("%+v", l)
	}

	// Every letter of it counts.
	for i := range made.Secret {
		for _, c := range []string{"", "A", made.Secret[i:i+1] + "x", "\x00"} {
			text := made.Secret[:i] + c + made.Secret[i+1:]
			if text != made.Secret && strings.HasPrefix(h.good(text), "token:") {
				t.Fatalf("%q is taken for %q", text, made.Secret)
			}
		}
	}
	for _, bad := range []string{"", "levee_", "gateway", made.ID, strings.Repeat("levee_", 1000), made.Secret + " "} {
		if got := h.good(bad); got != "is no token of Levee's" {
			t.Errorf("%q: %s", bad, got)
		}
	}

	h.clock.advance(30 * 24 * time.Hour)
	if got := h.good(made.Secret); got != "it has expired" {
		t.Error(got)
	}
}

func TestTokenRotation(t *testing.T) {
	h := open(t)
	first := h.token(TokenRequest{Name: "gateway", Scopes: []Scope{ScopeBan}})
	second, err := h.RotateToken("gateway", TokenRotation{Overlap: "1h"})
	if err != nil || second.ID != first.ID || second.Secret == first.Secret {
		t.Fatalf("%+v, %v", second, err)
	}
	for range 2 {
		if h.good(first.Secret) != "token:gateway" || h.good(second.Secret) != "token:gateway" {
			t.Error("both should work")
		}
		h.reopen()
	}
	h.clock.advance(time.Hour)
	if h.good(first.Secret) != "the secret is wrong, or was replaced" || h.good(second.Secret) != "token:gateway" {
		t.Error("the second alone should work")
	}
	third, err := h.RotateToken("gateway", TokenRotation{Overlap: "0s", For: "1d"})
	if err != nil || h.good(second.Secret) == "token:gateway" || h.good(third.Secret) != "token:gateway" || third.Expires.Sub(h.clock.Now()) != 24*time.Hour {
		t.Errorf("%+v, %v", third, err)
	}
	if _, err := h.RemoveToken("gateway"); err != nil {
		t.Fatal(err)
	}
	if got := h.good(third.Secret); got != "there is no such token, or it was revoked" {
		t.Error(got)
	}
	if _, err := h.RemoveToken("gateway"); AsError(err, "").Code != CodeNotFound {
		t.Error(err)
	}
	if _, err := h.RotateToken("gateway", TokenRotation{}); AsError(err, "").Code != CodeNotFound {
		t.Error(err)
	}
}

func TestTokenRequests(t *testing.T) {
	h := open(t)
	h.token(TokenRequest{Name: "taken", Scopes: []Scope{ScopeRead}})
	if b := h.token(TokenRequest{Name: "boss", Scopes: []Scope{ScopeAdmin}}).Bounds; b != nil {
		t.Errorf("bounds %+v", b)
	}
	for field, r := range map[string]TokenRequest{
		"name":             {Name: "Gate way", Scopes: []Scope{ScopeRead}},
		"name ":            {Name: "taken", Scopes: []Scope{ScopeRead}},
		"scopes":           {Name: "a"},
		"scopes ":          {Name: "a", Scopes: []Scope{"root"}},
		"scopes  ":         {Name: "a", Scopes: []Scope{ScopeRead, ScopeRead}},
		"owner":            {Name: "a", Scopes: []Scope{ScopeRead}, Owner: "a\nb"},
		"for":              {Name: "a", Scopes: []Scope{ScopeRead}, For: "0s"},
		"for ":             {Name: "a", Scopes: []Scope{ScopeRead}, For: "100000d"},
		"bounds.ipv4":      {Name: "a", Scopes: []Scope{ScopeBan}, Bounds: &AskedBounds{IPv4: new(64)}},
		"bounds.origins":   {Name: "a", Scopes: []Scope{ScopeBan}, Bounds: &AskedBounds{Origins: []Origin{"nobody"}}},
		"bounds.origins  ": {Name: "a", Scopes: []Scope{ScopeBan}, Bounds: &AskedBounds{Origins: []Origin{"kernel"}}},
	} {
		if _, err := h.AddToken(r, "root"); err == nil || !strings.HasPrefix(AsError(err, "").Field, strings.TrimSpace(field)) {
			t.Errorf("%+v: %v, want one about %s", r, err, field)
		}
	}
	if n := len(h.Tokens()); n != 2 {
		t.Errorf("%d tokens", n)
	}
}

// A file of a version that knew no tokens opens, and its bans stand.
func TestTokensLater(t *testing.T) {
	h := open(t)
	h.ban("192.0.2.1", "operator", time.Hour)
	if err := h.db.Update(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketTokens) }); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	if h.banned() == "" {
		t.Error("the ban is gone")
	}
	h.token(TokenRequest{Name: "gateway", Scopes: []Scope{ScopeRead}})
}

// Who names one bound keeps the others, and who wants none says so.
func TestAskedBounds(t *testing.T) {
	h := open(t)
	day := Duration(24 * time.Hour)
	api := []Origin{"api:t"}
	for text, want := range map[string]Bounds{
		`{}`:                        {32, 64, day, 100_000, api, false},
		`{"ipv4":24}`:               {24, 64, day, 100_000, api, false},
		`{"ipv6":0}`:                {32, 0, day, 100_000, api, false},
		`{"longest":"1h"}`:          {32, 64, Duration(time.Hour), 100_000, api, false},
		`{"longest":"0s"}`:          {32, 64, 0, 100_000, api, false},
		`{"claims":7}`:              {32, 64, day, 7, api, false},
		`{"claims":0}`:              {32, 64, day, 0, api, false},
		`{"origins":["api:other"]}`: {32, 64, day, 100_000, []Origin{"api:other"}, false},
		`{"origins":[]}`:            {32, 64, day, 0, nil, false},
		`{"force":true}`:            {32, 64, day, 100_000, api, true},
		`{"ipv4":0,"ipv6":0,"longest":"0s","claims":0,"origins":[]}`: {},
	} {
		for _, scope := range []Scope{ScopeBan, ScopeAdmin} {
			r := TokenRequest{Name: "t", Scopes: []Scope{scope}}
			if err := json.Unmarshal([]byte(text), &r.Bounds); err != nil {
				t.Fatal(err)
			}
			made := h.token(r)
			if got := made.Bounds; got == nil || !reflect.DeepEqual(*got, want) {
				t.Errorf("%s: %+v, want %+v", text, got, want)
			}
			if again := made.Bounds.Asked().Over(DefaultBounds("x")); !reflect.DeepEqual(*again, want) {
				t.Errorf("%s: asked for again: %+v", text, again)
			}
			if _, err := h.RemoveToken("t"); err != nil {
				t.Fatal(err)
			}
		}
	}
}
