package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
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

	wantForm(t, out.Bytes())
	again := out.String()
	out.Reset()
	if err := run([]string{"provenance", "-version", "1.2.3", "-commit", commit, file}, &out); err != nil || out.String() != again {
		t.Errorf("two statements about the same differ (%v)", err)
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

// form is what a document may and must hold: of each member a pattern for a string, or a form of its own.
// A name that begins with ? may be missing; [] is a list of at least one; any is anything.
type form map[string]any

const (
	anURI = `^(https|git\+https)://[A-Za-z0-9./_#-]+$`
	aTime = `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`
)

// digests are a set of https://github.com/in-toto/attestation/blob/main/spec/v1/digest_set.md.
var digests = form{"?sha256": `^[0-9a-f]{64}$`, "?gitCommit": `^[0-9a-f]{40}$`}

// statementForm is a Statement of in-toto's v1 (https://in-toto.io/Statement/v1) with a predicate of SLSA's
// v1 (https://slsa.dev/spec/v1.0/provenance#schema), their members without those for builders' internals.
var statementForm = form{
	"_type":         `^https://in-toto\.io/Statement/v1$`,
	"subject":       []any{form{"name": `^[^/]+$`, "digest": digests}},
	"predicateType": `^https://slsa\.dev/provenance/v1$`,
	"predicate": form{
		"buildDefinition": form{
			"buildType": anURI, "externalParameters": any(nil), "?internalParameters": any(nil),
			"?resolvedDependencies": []any{form{"uri": anURI, "digest": digests}},
		},
		"runDetails": form{
			"builder":   form{"id": anURI},
			"?metadata": form{"?invocationId": `.`, "?startedOn": aTime, "?finishedOn": aTime},
		},
	},
}

func wantForm(t *testing.T, text []byte) {
	t.Helper()
	var document any
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	for _, fault := range faults("", statementForm, document) {
		t.Error(fault)
	}
}

// faults says where a value is not of a form.
func faults(at string, want, got any) (found []string) {
	switch want := want.(type) {
	case nil:
		if m, ok := got.(map[string]any); !ok || len(m) == 0 {
			found = append(found, fmt.Sprintf("%s is %v, not an object that says something", at, got))
		}
	case string:
		if s, ok := got.(string); !ok || !regexp.MustCompile(want).MatchString(s) {
			found = append(found, fmt.Sprintf("%s is %v, not like %s", at, got, want))
		}
	case []any:
		list, ok := got.([]any)
		if !ok || len(list) == 0 {
			return []string{fmt.Sprintf("%s is %v, not a list of something", at, got)}
		}
		for i, v := range list {
			found = append(found, faults(fmt.Sprintf("%s[%d]", at, i), want[0], v)...)
		}
	case form:
		members, ok := got.(map[string]any)
		if !ok || len(members) == 0 {
			return []string{fmt.Sprintf("%s is %v, not an object", at, got)}
		}
		for name, v := range want {
			plain, optional := strings.CutPrefix(name, "?")
			m, there := members[plain]
			switch {
			case there:
				found = append(found, faults(at+"."+plain, v, m)...)
			case !optional:
				found = append(found, fmt.Sprintf("%s.%s is missing", at, plain))
			}
		}
		for name := range members {
			_, must := want[name]
			if _, may := want["?"+name]; !must && !may {
				found = append(found, fmt.Sprintf("%s.%s is none of the form's", at, name))
			}
		}
	}
	return found
}

// The check of the form sees what is wrong.
func TestProvenanceForm(t *testing.T) {
	good := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"name":"a","digest":{"sha256":"` + strings.Repeat("a", 64) + `"}}],` +
		`"predicateType":"https://slsa.dev/provenance/v1","predicate":{"buildDefinition":{"buildType":"https://example.com/a","externalParameters":{"a":1}},` +
		`"runDetails":{"builder":{"id":"https://example.com/b"}}}}`
	check := func(text string) []string {
		var document any
		if err := json.Unmarshal([]byte(text), &document); err != nil {
			t.Fatal(err)
		}
		return faults("", statementForm, document)
	}
	if found := check(good); len(found) > 0 {
		t.Error(found)
	}
	for was, is := range map[string]string{
		`Statement/v1`: `Statement/v0.1`, `"sha256":"aa`: `"sha256":"A`, `{"a":1}`: `{}`, `"name":"a"`: `"name":"dist/a"`,
		`"builder":{"id"`: `"builder":{"ID"`, `"runDetails"`: `"metadata"`, `https://example.com/a`: `a b`, `provenance/v1`: `provenance/v0.2`,
	} {
		if found := check(strings.Replace(good, was, is, 1)); len(found) == 0 {
			t.Errorf("%s in the place of %s goes unseen", is, was)
		}
	}
}
