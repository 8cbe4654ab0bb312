package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// share is one part of all sites, so that a phase can be run in pieces. The zero share is all of them.
type share struct{ number, of uint64 }

// Set reads a share, as 2/6.
func (s *share) Set(text string) error {
	number, of, ok := strings.Cut(text, "/")
	n, errN := strconv.ParseUint(number, 10, 16)
	m, errM := strconv.ParseUint(of, 10, 16)
	if err := errors.Join(errN, errM); !ok || err != nil || n == 0 || n > m {
		return errors.New("is none; write the second of six as 2/6")
	}
	*s = share{n, m}
	return nil
}

// String writes the share as Set reads it.
func (s *share) String() string {
	if s.of == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.number, s.of)
}

// has tells whether a site is in the share. It goes by the site's key, so that each site is in one share,
// whatever else a run meets.
func (s *share) has(key string) bool {
	if s.of == 0 {
		return true
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // it never fails
	return h.Sum64()%s.of == s.number-1
}

// addUp adds what earlier shares found, and left in a file, to what this one did, and leaves the sum.
func addUp(path string, s share, r *faultsResult) error {
	type sum struct {
		Shares []string
		Result faultsResult
	}
	var earlier sum
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &earlier)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the earlier shares: %w", err)
	}
	for _, one := range earlier.Shares {
		if one == s.String() {
			return fmt.Errorf("%s has the share %s already", path, one)
		}
	}
	r.add(earlier.Result)
	if text, err = json.Marshal(sum{append(earlier.Shares, s.String()), *r}); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}
