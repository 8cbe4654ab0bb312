package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// kernel is one of Debian's to test on.
type kernel struct {
	Name   string // what -only calls it
	Suite  string // of Debian, that has it
	Series string // how its version begins
}

// kernels are the oldest that Debian supports, the one of its stable release, and a newer one.
var kernels = []kernel{
	{Name: "6.1", Suite: "bookworm", Series: "6.1."},
	{Name: "6.12", Suite: "trixie", Series: "6.12."},
	{Name: "newer", Suite: "trixie-backports"},
}

const metapackage = "linux-image-cloud-amd64"

// store fetches packages into a directory of its own, with lists of its own: the host's packages, its
// sources and its lists stay as they are.
type store struct {
	dir string
}

// newStore makes the directory, and lists with the suites of all kernels, from the mirror and with the
// keys that the host itself uses for Debian.
func newStore(dir string) (*store, error) {
	s := &store{dir: dir}
	for _, sub := range []string{"lists/partial", "cache/archives/partial", "kernels"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	mirror, err := mirror()
	if err != nil {
		return nil, err
	}
	var list bytes.Buffer
	for _, k := range kernels {
		fmt.Fprintf(&list, "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", mirror, k.Suite)
	}
	if err := os.WriteFile(filepath.Join(dir, "sources.list"), list.Bytes(), 0o644); err != nil {
		return nil, err
	}
	return s, os.WriteFile(filepath.Join(dir, "status"), nil, 0o644)
}

// mirror is where the host has Debian's packages from.
func mirror() (string, error) {
	out, err := exec.Command("apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(LABEL)", "Created-By: Packages", "Component: main").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for its sources: %w", explain(err))
	}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == "Debian" && f[2] == "Debian" {
			return f[0], nil
		}
	}
	return "", errors.New("apt knows no mirror of Debian: run `apt-get update`, or run this on Debian")
}

func (s *store) apt(tool string, args ...string) ([]byte, error) {
	options := []string{}
	for key, value := range map[string]string{
		"Dir::Etc::sourcelist": filepath.Join(s.dir, "sources.list"), "Dir::Etc::sourceparts": "/dev/null",
		"Dir::State::lists": filepath.Join(s.dir, "lists"), "Dir::State::status": filepath.Join(s.dir, "status"),
		"Dir::Cache": filepath.Join(s.dir, "cache"), "APT::Architecture": "amd64", "APT::Sandbox::User": "root",
		"Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
	} {
		options = append(options, "-o", key+"="+value)
	}
	cmd := exec.Command(tool, append(options, args...)...)
	cmd.Dir = filepath.Join(s.dir, "kernels")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", tool, strings.Join(args, " "), explain(err))
	}
	return out, nil
}

func explain(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

// update reads the suites' lists anew.
func (s *store) update() error {
	_, err := s.apt("apt-get", "update", "-qq")
	return err
}

var (
	versionLine = regexp.MustCompile(`(?m)^Version: (.+)$`)
	dependsLine = regexp.MustCompile(`(?m)^Depends: (.+)$`)
	ofKernel    = regexp.MustCompile(`^linux-(image|binary|modules)-[0-9]`)
)

// fetch returns the directory of an unpacked kernel and its version, and downloads it if it is not there.
func (s *store) fetch(k kernel) (dir, version string, err error) {
	version, err = s.newest(k)
	if err != nil {
		return "", "", err
	}
	dir = filepath.Join(s.dir, "kernels", k.Name+"_"+version)
	if _, err := os.Stat(dir); err == nil {
		return dir, version, nil
	}
	names, err := s.parts(metapackage, version)
	if err != nil {
		return "", "", err
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", "", err
	}
	for _, name := range names {
		if _, err := s.apt("apt-get", "download", "-qq", name+"="+version); err != nil {
			return "", "", err
		}
		files, err := filepath.Glob(filepath.Join(s.dir, "kernels", name+"_*.deb"))
		if err != nil || len(files) != 1 {
			return "", "", fmt.Errorf("package %s: %d files were downloaded (%w)", name, len(files), err)
		}
		if out, err := exec.Command("dpkg-deb", "-x", files[0], fresh).CombinedOutput(); err != nil {
			return "", "", fmt.Errorf("unpack %s: %w: %s", name, err, out)
		}
		if err := os.Remove(files[0]); err != nil {
			return "", "", err
		}
	}
	return dir, version, os.Rename(fresh, dir)
}

// newest is the newest version that a kernel's suite has.
func (s *store) newest(k kernel) (string, error) {
	out, err := s.apt("apt-cache", "madison", metapackage)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(out)) {
		column := strings.Split(line, "|") // package | version | mirror suite/component architecture Packages
		if len(column) != 3 {
			continue
		}
		version := strings.TrimSpace(column[1])
		if strings.Contains(column[2], " "+k.Suite+"/") && strings.HasPrefix(version, k.Series) {
			return version, nil
		}
	}
	return "", fmt.Errorf("%s has no kernel %s; run again with -refresh", k.Suite, k.Series)
}

// parts are the packages of a kernel, which older ones have in one and newer ones in several.
func (s *store) parts(name, version string) ([]string, error) {
	out, err := s.apt("apt-cache", "show", name+"="+version)
	if err != nil {
		return nil, err
	}
	if m := versionLine.FindSubmatch(out); m == nil || string(m[1]) != version {
		return nil, fmt.Errorf("package %s: no version %s", name, version)
	}
	var parts []string
	if ofKernel.MatchString(name) {
		parts = append(parts, name)
	}
	depends := dependsLine.FindSubmatch(out)
	if depends == nil {
		return parts, nil
	}
	for _, d := range strings.Split(string(depends[1]), ",") {
		d, _, _ = strings.Cut(strings.TrimSpace(d), " ")
		if !ofKernel.MatchString(d) {
			continue
		}
		more, err := s.parts(d, version)
		if err != nil {
			return nil, err
		}
		for _, m := range more {
			if !slices.Contains(parts, m) {
				parts = append(parts, m)
			}
		}
	}
	return parts, nil
}
