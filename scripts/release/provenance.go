package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"
)

// A statement is in-toto's v1 (https://in-toto.io/Statement/v1) about SLSA's build provenance
// (https://slsa.dev/provenance/v1). It is not signed: who publishes a release signs it.
type statement struct {
	Type          string    `json:"_type"`
	Subject       []subject `json:"subject"`
	PredicateType string    `json:"predicateType"`
	Predicate     predicate `json:"predicate"`
}

type subject struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type predicate struct {
	Definition definition `json:"buildDefinition"`
	Run        runDetails `json:"runDetails"`
}

type definition struct {
	BuildType    string         `json:"buildType"`
	External     map[string]any `json:"externalParameters"`
	Internal     map[string]any `json:"internalParameters"`
	Dependencies []subject      `json:"resolvedDependencies"`
}

type runDetails struct {
	Builder struct {
		ID string `json:"id"`
	} `json:"builder"`
	Metadata struct {
		Started time.Time `json:"startedOn"`
	} `json:"metadata"`
}

const repository = "https://github.com/levee-xdp/levee"

var gitCommit = regexp.MustCompile(`^[0-9a-f]{40}$`)

// provenance says of what source and how files were built. The time in it is the commit's, so that a
// rebuild gives the same statement.
func provenance(version, commit string, built time.Time, files []string) (*statement, error) {
	if len(files) == 0 || version == "" {
		return nil, errors.New("provenance: it wants a version, a commit and the files")
	}
	if !gitCommit.MatchString(commit) {
		return nil, fmt.Errorf("provenance: %q is no commit", commit)
	}
	s := &statement{Type: "https://in-toto.io/Statement/v1", PredicateType: "https://slsa.dev/provenance/v1"}
	slices.Sort(files)
	for _, path := range files {
		digest, err := digestOf(path)
		if err != nil {
			return nil, err
		}
		s.Subject = append(s.Subject, subject{Name: filepath.Base(path), Digest: map[string]string{"sha256": digest}})
	}
	s.Predicate.Definition = definition{
		BuildType: repository + "/blob/main/docs/install.md#how-a-release-is-built",
		External:  map[string]any{"repository": repository, "commit": commit, "target": "release", "version": version},
		Internal:  map[string]any{"SOURCE_DATE_EPOCH": built.Unix(), "go": runtime.Version()},
		Dependencies: []subject{{
			URI: "git+" + repository, Digest: map[string]string{"gitCommit": commit},
		}},
	}
	s.Predicate.Run.Builder.ID = repository + "/blob/main/Makefile"
	s.Predicate.Run.Metadata.Started = built
	return s, nil
}
