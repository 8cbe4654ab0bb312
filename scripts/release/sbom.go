package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A bom is a CycloneDX 1.6 document (https://cyclonedx.org/docs/1.6/json/), what is used of it.
type bom struct {
	Format       string       `json:"bomFormat"`
	SpecVersion  string       `json:"specVersion"`
	Serial       string       `json:"serialNumber"`
	Version      int          `json:"version"`
	Metadata     metadata     `json:"metadata"`
	Components   []component  `json:"components"`
	Dependencies []dependency `json:"dependencies"`
}

type metadata struct {
	Timestamp time.Time `json:"timestamp"`
	Component component `json:"component"`
}

type component struct {
	Ref        string     `json:"bom-ref"`
	Type       string     `json:"type"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl,omitempty"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type dependency struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// sbom lists what the linker put into a binary, as the binary itself says: no more and no less than
// what runs.
func sbom(path, version string, built time.Time) (*bom, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}
	digest, err := digestOf(path)
	if err != nil {
		return nil, err
	}
	product := component{Type: "application", Name: "levee", Version: version, PURL: purl(info.Main.Path, version),
		Hashes: []hash{{"SHA-256", digest}}}
	product.Ref = product.PURL
	for _, s := range info.Settings {
		if slices.Contains([]string{"GOARCH", "GOOS", "CGO_ENABLED", "-trimpath", "GOAMD64", "GOARM64"}, s.Key) {
			product.Properties = append(product.Properties, property{"levee:build:" + strings.TrimPrefix(s.Key, "-"), s.Value})
		}
	}
	std := strings.TrimPrefix(info.GoVersion, "go")
	components := []component{{Type: "library", Name: "std", Version: std, PURL: purl("std", std), Ref: purl("std", std)}}
	for _, m := range info.Deps {
		c, err := moduleOf(m)
		if err != nil {
			return nil, err
		}
		components = append(components, c)
	}
	all := dependency{Ref: product.Ref}
	for _, c := range components {
		all.DependsOn = append(all.DependsOn, c.Ref)
	}
	return &bom{Format: "CycloneDX", SpecVersion: "1.6", Version: 1, Serial: serial(digest),
		Metadata: metadata{built, product}, Components: components, Dependencies: []dependency{all}}, nil
}

func moduleOf(m *debug.Module) (component, error) {
	if m.Replace != nil {
		m = m.Replace
	}
	c := component{Type: "library", Name: m.Path, Version: m.Version, PURL: purl(m.Path, m.Version)}
	c.Ref = c.PURL
	// h1: is the SHA-256 of a list of the module's files (golang.org/x/mod/sumdb/dirhash), not of an
	// archive, so it is no hash in this format's sense.
	sum, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:"))
	if err != nil || len(sum) != sha256.Size {
		return c, fmt.Errorf("module %s: its checksum %q is none", m.Path, m.Sum)
	}
	c.Properties = []property{{"levee:go:h1", m.Sum}}
	return c, nil
}

// purl is a package URL (https://github.com/package-url/purl-spec), type golang.
func purl(path, version string) string {
	return "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
}

// serial makes a UUID (RFC 9562, version 8: of one's own making) of a digest, the same for the same
// binary.
func serial(digest string) string {
	b, _ := hex.DecodeString(digest[:32])
	b[6], b[8] = b[6]&0x0f|0x80, b[8]&0x3f|0x80
	return fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

func digestOf(path string) (string, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
