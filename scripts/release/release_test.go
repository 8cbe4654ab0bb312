package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The list of what a binary is made of holds what the toolchain says of it, and is the same each time.
func TestSBOM(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	binary, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	list := func() []byte {
		t.Helper()
		var out bytes.Buffer
		if err := run([]string{"sbom", "-binary", binary, "-version", "1.2.3"}, &out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	text := list()
	if again := list(); !bytes.Equal(text, again) {
		t.Error("two lists of one binary differ")
	}
	var b bom
	if err := json.Unmarshal(text, &b); err != nil {
		t.Fatal(err)
	}
	if b.Format != "CycloneDX" || b.SpecVersion != "1.6" || b.Metadata.Component.Version != "1.2.3" {
		t.Errorf("the head is %+v", b)
	}
	if !strings.HasPrefix(b.Serial, "urn:uuid:") || len(b.Serial) != len("urn:uuid:")+36 {
		t.Errorf("the serial number %q is no UUID", b.Serial)
	}
	if got := b.Metadata.Timestamp.Unix(); got != 1700000000 {
		t.Errorf("its time is %d", got)
	}
	said, err := exec.Command("go", "version", "-m", binary).Output()
	if err != nil {
		t.Fatal(err)
	}
	modules := strings.Count(string(said), "\n\tdep\t")
	if len(b.Components) != modules+1 { // and the standard library
		t.Errorf("it lists %d components, the binary has %d modules", len(b.Components), modules)
	}
	refs := map[string]bool{}
	for _, c := range b.Components {
		if refs[c.Ref] {
			t.Errorf("%s stands twice", c.Ref)
		}
		refs[c.Ref] = true
	}
	for _, ref := range b.Dependencies[0].DependsOn {
		if !refs[ref] {
			t.Errorf("a dependency on %s, which is no component", ref)
		}
	}
}

// The statement names every file by its digest, and the commit.
func TestProvenance(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1700000000")
	file := filepath.Join(t.TempDir(), "levee.deb")
	if err := os.WriteFile(file, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	commit := strings.Repeat("a1", 20)
	var out bytes.Buffer
	if err := run([]string{"provenance", "-version", "1.2.3", "-commit", commit, file}, &out); err != nil {
		t.Fatal(err)
	}
	var s statement
	if err := json.Unmarshal(out.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	// FIPS 180-2, appendix B.1: the digest of abc.
	const digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if len(s.Subject) != 1 || s.Subject[0].Name != "levee.deb" || s.Subject[0].Digest["sha256"] != digest {
		t.Errorf("the subject is %+v", s.Subject)
	}
	if s.Type != "https://in-toto.io/Statement/v1" || s.PredicateType != "https://slsa.dev/provenance/v1" {
		t.Errorf("it is a %s about a %s", s.Type, s.PredicateType)
	}
	if got := s.Predicate.Definition.Dependencies[0].Digest["gitCommit"]; got != commit {
		t.Errorf("the source is %s", got)
	}

	for _, bad := range [][]string{
		{"provenance", "-version", "1.2.3", "-commit", commit},
		{"provenance", "-version", "1.2.3", "-commit", "HEAD", file},
		{"provenance", "-version", "1.2.3", "-commit", commit, file + ".missing"},
		{"sbom", "-binary", file, "-version", "1"},
		{"other"},
		{},
	} {
		if err := run(bad, &out); err == nil {
			t.Errorf("release %q went well", bad)
		}
	}
}
