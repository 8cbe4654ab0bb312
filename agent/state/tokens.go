package state

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/bbolt"
)

// A token's text is levee_ID_SECRET: 16 hexadecimal digits that find it, and 32 random bytes in
// base64 that prove it. What is kept is the secret's SHA-256: of a secret with 256 bits nothing can be
// guessed, so it needs no slow hash.
const (
	tokenPrefix = "levee_"
	tokenID     = 16
	tokenSecret = 43
)

// savedToken is a token as the file has it.
type savedToken struct {
	Token
	Hash   []byte `json:"hash"`
	Before []byte `json:"before,omitempty"` // the hash of the secret before, good until Overlap
}

// tokenTable is the tokens by id. It has a lock of its own, so that who may ask is known while a
// long change is written.
type tokenTable struct {
	mu    sync.RWMutex
	by    map[string]savedToken
	used  map[string]use // since the last write
	decoy []byte         // compared with where there is no token, so that both take as long
}

type use struct {
	at   time.Time
	from netip.Addr
}

func newTokenTable() *tokenTable {
	return &tokenTable{by: map[string]savedToken{}, used: map[string]use{}, decoy: make([]byte, sha256.Size)}
}

func (t *tokenTable) named(name string) (savedToken, bool) {
	for _, s := range t.by {
		if s.Name == name {
			return s, true
		}
	}
	return savedToken{}, false
}

func newSecret() (text string, hash []byte) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // it does not fail: crypto/rand ends the process first
	text = base64.RawURLEncoding.EncodeToString(b[:])
	return text, hashOf(text)
}

func hashOf(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

// Authenticate returns who shows a token. Returns a *TokenError if it is not good.
func (s *Store) Authenticate(text string, from netip.Addr) (Actor, error) {
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok || len(rest) != tokenID+1+tokenSecret || rest[tokenID] != '_' {
		return Actor{}, &TokenError{Reason: "is no token of Levee's"}
	}
	id, given := rest[:tokenID], hashOf(rest[tokenID+1:])
	if b, err := hex.DecodeString(id); err != nil || hex.EncodeToString(b) != id {
		return Actor{}, &TokenError{Reason: "is no token of Levee's"}
	}
	now := s.clock.Now()
	t := s.tokens
	t.mu.RLock()
	saved, known := t.by[id]
	t.mu.RUnlock()
	hash, before := saved.Hash, saved.Before
	if !known {
		hash = t.decoy
	}
	if len(before) == 0 || !now.Before(saved.Overlap) {
		before = t.decoy
	}
	good := subtle.ConstantTimeCompare(given, hash) | subtle.ConstantTimeCompare(given, before)
	switch {
	case !known:
		return Actor{}, &TokenError{ID: id, Reason: "there is no such token, or it was revoked"}
	case good != 1:
		return Actor{}, &TokenError{ID: id, Name: saved.Name, Reason: "the secret is wrong, or was replaced"}
	case !now.Before(saved.Expires):
		return Actor{}, &TokenError{ID: id, Name: saved.Name, Reason: "it has expired"}
	}
	t.mu.Lock()
	if _, still := t.by[id]; still {
		t.used[id] = use{now.UTC(), from.Unmap()}
	}
	t.mu.Unlock()
	return saved.actor(), nil
}

// AddToken makes a token. Its text is told this once.
func (s *Store) AddToken(r TokenRequest, by string) (TokenSecret, error) {
	token, failed := r.token(by, s.clock.Now().UTC())
	if failed != nil {
		return TokenSecret{}, failed
	}
	var id [tokenID / 2]byte
	_, _ = rand.Read(id[:]) // it does not fail: crypto/rand ends the process first
	token.ID = hex.EncodeToString(id[:])
	secret, hash := newSecret()
	err := s.changeTokens(func(next map[string]savedToken) *Error {
		if _, ok := s.tokens.named(token.Name); ok {
			return &Error{Code: CodeConflict, Field: "name", Value: token.Name, Detail: "is taken: remove that token first, or rotate its secret"}
		}
		if len(next) >= MaxTokens {
			return &Error{Code: CodeFull, Field: "name", Value: token.Name, Detail: fmt.Sprintf("would be one too many: there are %d tokens", len(next))}
		}
		next[token.ID] = savedToken{Token: *token, Hash: hash}
		return nil
	})
	if err != nil {
		return TokenSecret{}, err
	}
	return TokenSecret{*token, tokenPrefix + token.ID + "_" + secret}, nil
}

// RotateToken gives a token a new secret. The old one works for a while, so that whoever uses it can
// change over.
func (s *Store) RotateToken(name string, r TokenRotation) (TokenSecret, error) {
	overlap, failed := durationWithin("overlap", r.Overlap, DefaultOverlap, 0, LongestOverlap)
	if failed != nil {
		return TokenSecret{}, failed
	}
	life, failed := durationWithin("for", r.For, 0, time.Second, LongestToken)
	if failed != nil {
		return TokenSecret{}, failed
	}
	secret, hash := newSecret()
	var token Token
	err := s.changeTokens(func(next map[string]savedToken) *Error {
		t, ok := s.tokens.named(name)
		if !ok {
			return noToken(name)
		}
		now := s.clock.Now().UTC()
		t.Hash, t.Before, t.Rotated, t.Overlap = hash, t.Hash, now, now.Add(overlap)
		if overlap == 0 {
			t.Before, t.Overlap = nil, time.Time{}
		}
		if life > 0 {
			t.Expires = now.Add(life)
		}
		next[t.ID], token = t, t.Token
		return nil
	})
	if err != nil {
		return TokenSecret{}, err
	}
	return TokenSecret{token, tokenPrefix + token.ID + "_" + secret}, nil
}

// RemoveToken revokes a token, and returns its id: from now on nobody is known by it. What it banned
// stands.
func (s *Store) RemoveToken(name string) (id string, err error) {
	err = s.changeTokens(func(next map[string]savedToken) *Error {
		t, ok := s.tokens.named(name)
		if !ok {
			return noToken(name)
		}
		delete(next, t.ID)
		id = t.ID
		return nil
	})
	return id, err
}

// HasToken tells whether there is a token of an id.
func (s *Store) HasToken(id string) bool {
	s.tokens.mu.RLock()
	defer s.tokens.mu.RUnlock()
	_, ok := s.tokens.by[id]
	return ok
}

func noToken(name string) *Error {
	return &Error{Code: CodeNotFound, Field: "name", Value: clip(name), Detail: "is no token"}
}

// Tokens returns the tokens, in order of their names.
func (s *Store) Tokens() []Token {
	s.tokens.mu.RLock()
	defer s.tokens.mu.RUnlock()
	out := make([]Token, 0, len(s.tokens.by))
	for id, t := range s.tokens.by {
		if u, ok := s.tokens.used[id]; ok {
			t.LastUsed, t.LastFrom = u.at, u.from
		}
		out = append(out, t.Token)
	}
	slices.SortFunc(out, func(a, b Token) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// changeTokens writes the tokens as f leaves them, and then has memory follow.
func (s *Store) changeTokens(f func(next map[string]savedToken) *Error) error {
	s.writer.Lock()
	defer s.writer.Unlock()
	t := s.tokens
	next := maps.Clone(t.by)
	if err := f(next); err != nil {
		return err
	}
	t.mu.Lock()
	used := t.used
	t.used = map[string]use{}
	t.mu.Unlock()
	for id, u := range used {
		if n, ok := next[id]; ok {
			n.LastUsed, n.LastFrom = u.at, u.from
			next[id] = n
		}
	}
	failed := s.write("write the tokens", func(tx *bbolt.Tx) error {
		return replaceBucket(tx, bucketTokens, next, func(t savedToken) ([]byte, error) { return json.Marshal(t) })
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if failed != nil {
		for id, u := range used {
			if _, newer := t.used[id]; !newer {
				t.used[id] = u
			}
		}
		return failed
	}
	t.by = next
	return nil
}

// NoteUse writes when tokens were last used, if any was since.
func (s *Store) NoteUse() error {
	s.tokens.mu.RLock()
	n := len(s.tokens.used)
	s.tokens.mu.RUnlock()
	if n == 0 {
		return nil
	}
	return s.changeTokens(func(map[string]savedToken) *Error { return nil })
}

func (s *Store) loadTokens(tx *bbolt.Tx) error {
	s.tokens = newTokenTable()
	return tx.Bucket(bucketTokens).ForEach(func(k, v []byte) error {
		var t savedToken
		if err := json.Unmarshal(v, &t); err != nil || t.ID != string(k) || len(t.Hash) != sha256.Size || !nameOK(t.Name) {
			return fmt.Errorf("token %q makes no sense", k)
		}
		s.tokens.by[t.ID] = t
		return nil
	})
}
