package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// Notify is who is told of attacks, and what an attack is.
type Notify struct {
	URL          string         `json:"url"`           // empty: nobody
	SecretFile   string         `json:"secret_file"`   // holds what notifications are signed with; empty: they are not
	Start        state.Rate     `json:"start"`         // packets dropped, from which on an attack begins
	After        state.Duration `json:"after"`         // when it has lasted so long
	End          state.Rate     `json:"end"`           // packets dropped, below which it ends
	Quiet        state.Duration `json:"quiet"`         // when that has lasted so long
	Summary      state.Duration `json:"summary"`       // how often it is told that it goes on; 0: never
	Timeout      state.Duration `json:"timeout"`       // of an attempt
	Attempts     state.Count    `json:"attempts"`      // at a notification, in all
	AllowPrivate bool           `json:"allow_private"` // the URL may lead to a private address
}

func defaultNotify() Notify {
	return Notify{
		Start: state.Rate{Count: 1000, Per: time.Second}, After: state.Duration(5 * time.Second),
		End: state.Rate{Count: 100, Per: time.Second}, Quiet: state.Duration(time.Minute), Summary: state.Duration(5 * time.Minute),
		Timeout: state.Duration(5 * time.Second), Attempts: 5,
	}
}

func (n *Notify) problems() []*state.Error {
	var found []*state.Error
	bad := func(field, value, detail string) {
		found = append(found, &state.Error{Code: state.CodeInvalid, Field: "notify." + field, Value: value, Detail: detail})
	}
	if n.URL != "" {
		if err := checkWebhook(n.URL); err != nil {
			bad("url", n.URL, err.Error())
		}
	}
	if n.SecretFile != "" && (!filepath.IsAbs(n.SecretFile) || strings.ContainsRune(n.SecretFile, 0)) {
		bad("secret_file", n.SecretFile, "is not an absolute path")
	}
	for _, f := range []struct {
		name  string
		value state.Rate
	}{{"start", n.Start}, {"end", n.End}} {
		if f.value.Bits || f.value.Count == 0 {
			bad(f.name, f.value.String(), "is not a number of packets in a time; write 1k/s")
		}
	}
	if n.End.PerSecond() > n.Start.PerSecond() {
		bad("end", n.End.String(), "is more than notify.start: an attack would end where it begins")
	}
	for _, f := range []struct {
		name      string
		value     state.Duration
		low, high time.Duration
	}{
		{"after", n.After, 0, time.Hour},
		{"quiet", n.Quiet, time.Second, 24 * time.Hour},
		{"summary", n.Summary, 0, 24 * time.Hour},
		{"timeout", n.Timeout, 100 * time.Millisecond, time.Minute},
	} {
		if d := time.Duration(f.value); d < f.low || d > f.high {
			bad(f.name, f.value.String(), fmt.Sprintf("is not within %s to %s", state.Duration(f.low), state.Duration(f.high)))
		}
	}
	if d := time.Duration(n.Summary); d > 0 && d < 10*time.Second {
		bad("summary", n.Summary.String(), "is less than 10s; 0s is for never")
	}
	if n.Attempts < 1 || n.Attempts > 20 {
		bad("attempts", n.Attempts.String(), "is not within 1 to 20")
	}
	return found
}

// checkWebhook says what is wrong with a webhook's URL: it is https, or http to this very host.
func checkWebhook(text string) error {
	u, err := url.Parse(text)
	if err != nil {
		return errors.New("is not a URL")
	}
	switch {
	case u.Hostname() == "":
		return errors.New("names no host; write https://hooks.example.net/path")
	case u.User != nil:
		return errors.New("holds a user name or password, which logs would show; the signature says who speaks")
	case u.Fragment != "":
		return errors.New("has a fragment, which is never sent")
	case u.Scheme == "https":
		return nil
	case u.Scheme == "http":
		addr, err := netip.ParseAddr(u.Hostname())
		if u.Hostname() == "localhost" || err == nil && addr.IsLoopback() {
			return nil
		}
	}
	return errors.New("is not https; http goes to 127.0.0.1, [::1] and localhost alone")
}

// The bounds of a secret, in bytes.
const (
	minSecret = 16
	maxSecret = 4096
)

// Secret reads what notifications are signed with: the file's content without the line's end; nil if no
// file is named.
func (n *Notify) Secret() ([]byte, error) {
	if n.SecretFile == "" {
		return nil, nil
	}
	f, err := os.Open(n.SecretFile)
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w; the daemon's user has to be able to read it; run: chown levee %s", err, n.SecretFile)
		}
		return nil, fmt.Errorf("notify.secret_file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("notify.secret_file: %w", err)
	}
	switch mode := info.Mode(); {
	case !mode.IsRegular():
		return nil, fmt.Errorf("notify.secret_file: %s is not a regular file", n.SecretFile)
	case mode.Perm()&0o037 != 0:
		return nil, fmt.Errorf("notify.secret_file: others can read or change %s (mode %04o); run: chmod 0640 %[1]s", n.SecretFile, mode.Perm())
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+3))
	if err != nil {
		return nil, fmt.Errorf("notify.secret_file: %w", err)
	}
	b = bytes.TrimRight(b, "\r\n")
	if len(b) < minSecret || len(b) > maxSecret {
		return nil, fmt.Errorf("notify.secret_file: %s holds %d bytes; a secret has %d to %d", n.SecretFile, len(b), minSecret, maxSecret)
	}
	return b, nil
}
