package config

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWebhookURL(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://hooks.example.net/x": true, "https://192.0.2.1:8443": true, "http://127.0.0.1:9000/x": true, "http://[::1]/": true,
		"http://localhost:1/": true, "http://hooks.example.net/": false, "http://127.0.0.1.example.net/": false, "http://192.0.2.1/": false,
		"hooks.example.net": false, "ftp://127.0.0.1/": false, "https://": false, "https:///path": false, "https://a:b@example.net/": false,
		"https://example.net/#x": false, "file:///etc/passwd": false, "https://exa mple/": false,
	} {
		n := defaultNotify()
		n.URL = text
		if found := n.problems(); (len(found) == 0) != ok {
			t.Errorf("%q: %v", text, found)
		}
	}
}

func TestNotifySecret(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct {
		content string
		mode    os.FileMode
		want    string
		says    string
	}{
		"fine":         {"0123456789abcdef\n", 0o600, "0123456789abcdef", ""},
		"of a group":   {"0123456789abcdef\r\n", 0o640, "0123456789abcdef", ""},
		"readable":     {"0123456789abcdef\n", 0o644, "", "chmod 0640"},
		"writable":     {"0123456789abcdef\n", 0o660, "", "chmod 0640"},
		"short":        {"0123456789abcde\n\n\n", 0o600, "", "holds 15 bytes"},
		"long":         {strings.Repeat("x", 5000), 0o600, "", "holds"},
		"the longest":  {strings.Repeat("x", 4096) + "\r\n", 0o600, strings.Repeat("x", 4096), ""},
		"not a secret": {"", 0o600, "", "holds 0 bytes"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(c.content), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		n := Notify{SecretFile: path}
		got, err := n.Secret()
		if string(got) != c.want || (err == nil) != (c.says == "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	n := Notify{SecretFile: filepath.Join(dir, "fine")}
	if err := os.Chmod(n.SecretFile, 0); err != nil {
		t.Fatal(err)
	}
	if err := asNobody(func() error { _, err := n.Secret(); return err }); err == nil || !strings.Contains(err.Error(), "chown levee "+n.SecretFile) {
		t.Errorf("another's file: %v", err)
	}
	n.SecretFile = filepath.Join(dir, "missing")
	if _, err := n.Secret(); err == nil || strings.Contains(err.Error(), "chown") {
		t.Errorf("no such file: %v", err)
	}
	n.SecretFile = dir
	if _, err := n.Secret(); err == nil {
		t.Error("a directory is a secret")
	}
	n.SecretFile = ""
	if got, err := n.Secret(); got != nil || err != nil {
		t.Errorf("no file: %q, %v", got, err)
	}
}

// asNobody does something as a user who owns no file; if root tests, for others are held to a file's mode.
func asNobody(do func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends as nobody
		if err := unix.Setfsuid(65534); err != nil {
			result <- err
			return
		}
		result <- do()
	}()
	return <-result
}
