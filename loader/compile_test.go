package loader

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/levee-xdp/levee/bpf"
)

func TestCompile(t *testing.T) {
	if _, err := findClang(""); err != nil {
		lacks(t, "clang")
	}
	l := newLab(t)
	c := CompileConfig{CacheDir: filepath.Join(t.TempDir(), "cache")}
	before := descriptors(t)
	spec, report, err := Compile(t.Context(), c)
	must(t, err)
	if report.Cached || !strings.Contains(report.Version, "clang version") || report.Took == 0 || !exists(report.Object) {
		t.Errorf("report %+v", report)
	}
	if entries, _ := os.ReadDir(c.CacheDir); len(entries) != 1 {
		t.Errorf("the cache holds %v", entries)
	}
	_, again, err := Compile(t.Context(), c)
	must(t, err)
	if !again.Cached || again.Object != report.Object || again.Took > report.Took {
		t.Errorf("the second time %+v, the first %+v", again, report)
	}
	must(t, os.WriteFile(report.Object, []byte("torn"), 0o600))
	if _, again, err = Compile(t.Context(), c); err != nil || again.Cached {
		t.Errorf("a broken object: %+v, %v", again, err)
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, were %d", after, before)
	}

	// It goes in the place of the committed one, on the same set.
	l.veth("net0", 1500)
	s := l.open()
	a := l.attach(s, "net0", ModeAuto)
	must(t, s.Close())
	config := l.config()
	config.Spec = spec
	config.Features = bpf.DefaultFeatures()
	s = l.openWith(config)
	if adopted, why := s.Adopted(); !adopted {
		t.Error(why)
	}
	if _, err := s.Upgrade(); err != nil {
		t.Fatal(err)
	}
	l.wantShield("net0", a.Slot)
}

func TestCompileRefuses(t *testing.T) {
	if !exists("/bin/sh") {
		lacks(t, "shell, which plays the compilers")
	}
	dir := t.TempDir()
	script := func(name, body string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755))
		return path
	}
	const version = `case $1 in --version) echo "clang version 19.1.0"; exit;; esac; `
	hanging, cancel := context.WithCancel(t.Context())
	defer cancel()
	hangs := filepath.Join(dir, "hangs")
	go func() {
		for !exists(hangs) && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		config CompileConfig
		is     error
		says   string
	}{
		{name: "missing", config: CompileConfig{Clang: filepath.Join(dir, "nowhere")}, is: ErrNoClang},
		{name: "old", config: CompileConfig{Clang: script("old", `echo "clang version 11.0.1"`)}, is: ErrNoClang, says: "11.0.1"},
		{name: "gcc", config: CompileConfig{Clang: script("gcc", `echo "gcc (GCC) 14"`)}, is: ErrNoClang, says: "gcc"},
		{name: "failing", config: CompileConfig{Clang: script("failing", version+`echo "levee.c:1: no" >&2; exit 1`)}, says: "levee.c:1: no"},
		{name: "no object", config: CompileConfig{Clang: script("lying", version+`exit 0`)}, is: os.ErrNotExist},
		{name: "not an object", config: CompileConfig{Clang: script("odd", version+`echo hello > levee.o`)}, says: "read object"},
		{name: "hanging", ctx: hanging, config: CompileConfig{Clang: script("hanging", "> "+hangs+"; exec sleep 60")}, says: "killed"},
		{name: "open cache", config: CompileConfig{Clang: script("fine", version), CacheDir: "/tmp"}, says: "others can write"},
	} {
		if c.ctx == nil {
			c.ctx = t.Context()
		}
		if c.config.CacheDir == "" {
			c.config.CacheDir = filepath.Join(dir, "cache")
		}
		_, _, err := Compile(c.ctx, c.config)
		if err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "cache", "build-*")); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

func TestFindClang(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	t.Setenv("PATH", a+":"+b+":/nowhere")
	if _, err := findClang(""); !errors.Is(err, ErrNoClang) {
		t.Errorf("none: %v", err)
	}
	for _, path := range []string{a + "/clang-9", b + "/clang-19", a + "/clang-15", a + "/clang-cpp-20", a + "/clang-21.so"} {
		must(t, os.WriteFile(path, nil, 0o755))
	}
	if got, err := findClang(""); got != b+"/clang-19" {
		t.Errorf("the newest is %s, %v", got, err)
	}
	must(t, os.WriteFile(b+"/clang", nil, 0o755))
	if got, err := findClang(""); got != b+"/clang" {
		t.Errorf("the unnumbered is %s, %v", got, err)
	}
}

func TestSameShape(t *testing.T) {
	want, err := bpf.LoadLevee()
	must(t, err)
	if err := sameShape(want.Copy(), want); err != nil {
		t.Errorf("a copy: %v", err)
	}
	got := want.Copy()
	delete(got.Maps, bpf.LeveeMapStats)
	got.Maps[bpf.LeveeMapMeta].ValueSize++
	got.Maps["more"], got.Maps["and more"] = got.Maps[bpf.LeveeMapMeta], got.Maps[bpf.LeveeMapMeta]
	delete(got.Variables, bpf.LeveeVarCfgBans)
	got.Variables[bpf.LeveeVarCfgEvents].Value = make([]byte, 8)
	delete(got.Programs, bpf.LeveeProgLevee)
	err = sameShape(got, want)
	if err == nil {
		t.Fatal("no difference was seen")
	}
	for _, word := range []string{"map stats", "map meta", "constant cfg_bans", "constant cfg_events", "program levee", "1 maps more"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not in: %v", word, err)
		}
	}
}
