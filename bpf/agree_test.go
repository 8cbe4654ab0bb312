package bpf_test

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	kernel "github.com/cilium/ebpf/features"

	"github.com/levee-xdp/levee/bpf"
	"github.com/levee-xdp/levee/bpf/internal/rig"
)

func spec(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	s, err := bpf.LoadLevee()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func source(t *testing.T, name string) string {
	t.Helper()
	b, err := bpf.Sources.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// enum reads an enum's values from the object's BTF.
func enum(t *testing.T, s *ebpf.CollectionSpec, name string) map[string]uint64 {
	t.Helper()
	var e *btf.Enum
	if err := s.Types.TypeByName(name, &e); err != nil {
		t.Fatal(err)
	}
	values := make(map[string]uint64)
	for _, v := range e.Values {
		values[v.Name] = v.Value
	}
	return values
}

// TestReasons fails for a reason that the program knows and that has no label, no words, or no row
// in the documentation.
func TestReasons(t *testing.T) {
	page, err := os.ReadFile("../docs/reasons.md")
	if err != nil {
		t.Fatal(err)
	}
	labels := make(map[string]bool)
	reasons := bpf.Reasons()
	for name, value := range enum(t, spec(t), "reason") {
		reason := bpf.Reason(value)
		switch name {
		case "REASON_CONTINUE", "REASON_FIRST_DROP", "REASON_MAX":
			continue // not a reason of its own: never counted, a boundary, a size
		}
		label := reason.String()
		if !slices.Contains(reasons, reason) || strings.HasPrefix(label, "reason_") || strings.HasPrefix(reason.Words(), "unknown") {
			t.Errorf("%s = %d has no label or no words in reason.go", name, value)
		}
		if want := strings.ToLower(strings.TrimPrefix(name, "REASON_")); label != want {
			t.Errorf("%s is labelled %q, want %q", name, label, want)
		}
		if labels[label] {
			t.Errorf("label %q stands for two reasons", label)
		}
		labels[label] = true
		verdict := "passes"
		if reason.Drops() {
			verdict = "drops"
		}
		if row := regexp.MustCompile(`(?m)^\| ` + "`" + label + "`" + ` \| ` + verdict + ` \|.+\|.+\|$`); !row.Match(page) {
			t.Errorf("docs/reasons.md has no row of %s that says that it %s", label, verdict)
		}
	}
	if len(reasons) != len(labels) {
		t.Errorf("reason.go knows %d reasons, the object %d", len(reasons), len(labels))
	}
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\|").FindAllSubmatch(page, -1) {
		if !labels[string(row[1])] {
			t.Errorf("docs/reasons.md explains %s, which the program does not know", row[1])
		}
	}
	if last := uint64(slices.Max(reasons)); last >= uint64(bpf.ReasonMax) {
		t.Errorf("reason %d does not fit in ReasonMax", last)
	}
}

// TestEnumsHaveNames fails for a family, threshold or stat that Go does not know.
func TestEnumsHaveNames(t *testing.T) {
	s := spec(t)
	for name, value := range enum(t, s, "family") {
		if name != "FAMILY_MAX" && strings.HasPrefix(bpf.Family(value).String(), "family_") {
			t.Errorf("%s has no name in names.go", name)
		}
	}
	for name, value := range enum(t, s, "threshold") {
		if name != "THRESHOLD_MAX" && name != "LIMIT_COUNTERS" && strings.HasPrefix(bpf.Threshold(value).String(), "threshold_") {
			t.Errorf("%s has no name in names.go", name)
		}
	}
	if n := len(enum(t, s, "stat")); n-1 > int(bpf.StatMax) {
		t.Errorf("%d stats, and room for %d", n-1, bpf.StatMax)
	}
}

// TestConstants compares the numbers that Go has by hand with those of the C macros.
func TestConstants(t *testing.T) {
	types := source(t, "types.h")
	for _, want := range []string{
		"#define LEVEE_SCHEMA 3\n", "#define TAG_SEEN_MASK ((1ULL << 38) - 1)\n", "#define NS_FOREVER (~0ULL)\n",
		"#define TAT_PENALTY (1ULL << 63)\n",
	} {
		if !strings.Contains(types, want) {
			t.Errorf("types.h does not say %q", want)
		}
	}
	if bpf.Schema != 3 || bpf.TagSeenMask != 1<<38-1 || bpf.Forever != ^uint64(0) || bpf.TATPenalty != 1<<63 {
		t.Error("names.go says otherwise than types.h")
	}
	s := spec(t)
	if got := s.Maps[bpf.LeveeMapCounters].MaxEntries; got != bpf.MaxInterfaces*uint32(bpf.ReasonMax)*uint32(bpf.FamilyMax)*2 {
		t.Errorf("counters has %d entries", got)
	}
	if got := s.Maps[bpf.LeveeMapListCounters].MaxEntries; got != bpf.MaxLists*2 {
		t.Errorf("list_counters has %d entries", got)
	}
	if got := s.Maps[bpf.LeveeMapLimitCounters].MaxEntries; got != bpf.MaxLimits*uint32(bpf.LimitCounters)*2 {
		t.Errorf("limit_counters has %d entries", got)
	}
}

// TestTypes compares the layout of every type that both sides see: size, and each field's place.
func TestTypes(t *testing.T) {
	s := spec(t)
	for name, value := range map[string]any{
		"aggregate_bucket": bpf.AggregateBucket{}, "allow": bpf.Allow{}, "ban4_bucket": bpf.Ban4Bucket{}, "ban4_entry": bpf.Ban4Entry{},
		"ban6_bucket": bpf.Ban6Bucket{}, "ban6_entry": bpf.Ban6Entry{}, "ban6_far": bpf.Ban6Far{}, "ban6_lengths": bpf.Ban6Lengths{}, "control": bpf.Control{},
		"counter": bpf.Counter{}, "event": bpf.Event{}, "interface": bpf.Interface{}, "limit": bpf.Limit{}, "meta": bpf.Meta{},
		"tabs": bpf.Tabs{}, "rate": bpf.Rate{}, "prefix_key": bpf.PrefixKey{}, "source_counts": bpf.SourceCounts{},
		"source_state": bpf.SourceState{}, "source_tags": bpf.SourceTags{},
	} {
		var c *btf.Struct
		if err := s.Types.TypeByName(name, &c); err != nil {
			t.Error(err)
			continue
		}
		g := reflect.TypeOf(value)
		if uintptr(c.Size) != g.Size() {
			t.Errorf("struct %s has %d bytes, %s has %d", name, c.Size, g, g.Size())
		}
		fields := make(map[string]reflect.StructField)
		for i := range g.NumField() {
			fields[strings.ToLower(g.Field(i).Name)] = g.Field(i)
		}
		for _, m := range c.Members {
			f, ok := fields[strings.ReplaceAll(m.Name, "_", "")]
			if !ok || uintptr(m.Offset.Bytes()) != f.Offset {
				t.Errorf("struct %s has %s at %d, %s at %d (there: %v)", name, m.Name, m.Offset.Bytes(), g, f.Offset, ok)
			}
			if size, err := btf.Sizeof(m.Type); err != nil || uintptr(size) != f.Type.Size() {
				t.Errorf("struct %s has %s of %d bytes, %s of %d", name, m.Name, size, g, f.Type.Size())
			}
		}
	}
}

// TestMapsAreExplained fails for a map that no comment of maps.h speaks of: who writes and reads it,
// by which key.
func TestMapsAreExplained(t *testing.T) {
	var explained []string
	for _, paragraph := range strings.Split(source(t, "maps.h"), "\n\n") {
		if strings.Contains(paragraph, "/*") {
			explained = append(explained, paragraph)
		}
	}
	said := strings.Join(explained, "\n")
	s := spec(t)
	for name := range s.Maps {
		if strings.HasPrefix(name, ".") {
			continue
		}
		if !regexp.MustCompile(`\b(ARRAY|PERCPU|TRIE)\(` + name + `,|^}? ?` + name + ` SEC|\n} ` + name + ` SEC`).MatchString(said) {
			t.Errorf("maps.h declares %s without a comment", name)
		}
	}
	if len(s.Maps) < 20 {
		t.Errorf("only %d maps", len(s.Maps))
	}
}

// TestSourcesAreWhole fails if a header that levee.c includes does not travel with the agent.
func TestSourcesAreWhole(t *testing.T) {
	files, err := filepath.Glob("*.h")
	if err != nil || len(files) == 0 {
		t.Fatal("no headers", err)
	}
	for _, file := range append(files, "levee.c") {
		text := source(t, file)
		for _, include := range regexp.MustCompile(`(?m)^#include "(.+)"`).FindAllStringSubmatch(text, -1) {
			source(t, include[1])
		}
		if onDisk, err := os.ReadFile(file); err != nil || string(onDisk) != text {
			t.Errorf("%s travels in another version (%v)", file, err)
		}
	}
}

// maxInstructions is what the verifier may have to look at. Kernels stop at a million, and older
// ones see more of the same program than newer ones.
const maxInstructions = 400_000

// TestVerifier loads the program, as it is and with each feature off, and prints what it costs.
func TestVerifier(t *testing.T) {
	all := bpf.DefaultFeatures()
	for name, change := range map[string]func(*bpf.Features){
		"everything":   func(*bpf.Features) {},
		"multi-buffer": func(f *bpf.Features) { f.Frags = true },
		"no bans":      func(f *bpf.Features) { f.Bans = false },
		"no sanity":    func(f *bpf.Features) { f.Sanity = false },
		"no martians":  func(f *bpf.Features) { f.Martians = false },
		"no limits":    func(f *bpf.Features) { f.Limits = false },
		"no events":    func(f *bpf.Features) { f.Events = false },
		"least":        func(f *bpf.Features) { *f = bpf.Features{Frags: true} },
	} {
		features := all
		change(&features)
		needKernel(t)
		r, err := rig.Load(configOf(features))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		info, err := r.Program.Info()
		r.Close()
		if err != nil {
			t.Fatal(err)
		}
		n, ok := info.VerifiedInstructions()
		if version, err := kernel.LinuxVersionCode(); !ok && (err != nil || version >= 5<<16|16<<8) {
			t.Fatalf("the kernel does not tell how many instructions it verified, and is none before 5.16: %#x, %v", version, err)
		}
		if !ok {
			t.Skip("the kernel does not tell how many instructions it verified (5.16 does)")
		}
		t.Logf("%s: %d instructions verified", name, n)
		if n > maxInstructions {
			t.Errorf("%s: the verifier looked at %d instructions, more than %d", name, n, maxInstructions)
		}
	}
}
