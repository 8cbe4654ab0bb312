package main

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/levee-xdp/levee/scripts/kernels/plan"
)

const machineLog = `
@begin probe
{"Release":"6.1.0-50-cloud-amd64","Features":[{"Name":"a","Since":"5.5","Present":true,"Needed":true},{"Name":"b","Since":"6.6","Present":false}],"Instructions":{"everything":1000}}

@end probe 0

@begin maps
=== RUN   TestA
=== RUN   TestA/sub
--- PASS: TestA/sub (0.00s)
--- PASS: TestA (0.01s)
=== RUN   TestB
    maps_test.go:1: why not
--- SKIP: TestB (0.00s)
PASS

@end maps 0

@begin loader
=== RUN   TestC
    loader_test.go:9: it is red
--- FAIL: TestC (0.00s)
FAIL

@end loader 1
@done
`

func TestReadLog(t *testing.T) {
	r, err := read(strings.NewReader(strings.ReplaceAll(machineLog, "---", "\x16---")))
	if err != nil {
		t.Fatal(err)
	}
	if r.series() != "6.1" || len(r.Features) != 2 || r.Instructions["everything"] != 1000 {
		t.Errorf("probe: %+v", r.Probe)
	}
	if len(r.Tests) != 2 {
		t.Fatalf("tests: %+v", r.Tests)
	}
	if m := r.Tests[0]; m.Passed != 1 || m.Failed() != 0 || len(m.Skipped) != 1 || m.Skipped[0] != (skip{"TestB", "why not"}) {
		t.Errorf("maps: %+v", m)
	}
	if m := r.Tests[1]; m.Passed != 0 || m.Failed() != 1 || m.failed[0].name != "TestC" || !strings.Contains(m.failed[0].said, "it is red") {
		t.Errorf("loader: %+v", m)
	}
	if err := failures([]*result{r}); err == nil || !strings.Contains(err.Error(), "tests of loader failed") || strings.Contains(err.Error(), "maps") {
		t.Errorf("failures: %v", err)
	}
	if s := r.summary(); !strings.Contains(s, "skipped TestB: why not") || !strings.Contains(s, "FAILED TestC") {
		t.Errorf("summary: %s", s)
	}
}

// What is not whole is no result.
func TestReadBrokenLogs(t *testing.T) {
	for name, change := range map[string]func(string) string{
		"switched off in the middle": func(s string) string { return s[:strings.Index(s, "@begin loader")] },
		"no end":                     func(s string) string { return strings.Replace(s, plan.Done, "", 1) },
		"failed probe":               func(s string) string { return strings.Replace(s, "@end probe 0", "@end probe 1", 1) },
		"probe of no JSON":           func(s string) string { return strings.Replace(s, `{"Release"`, "oops", 1) },
	} {
		if r, err := read(strings.NewReader(change(machineLog))); err == nil {
			t.Errorf("%s: read %+v", name, r)
		}
	}
	crashed, err := read(strings.NewReader(strings.Replace(machineLog, "@end maps 0", "@end maps 2", 1)))
	if err != nil || crashed.Tests[0].Failed() != 1 {
		t.Errorf("exit code 2 outside of a test: %v", err)
	}
	missing, err := read(strings.NewReader(strings.Replace(machineLog, `"Present":true,"Needed":true`, `"Present":false,"Needed":true`, 1)))
	if err != nil || !strings.Contains(failures([]*result{missing}).Error(), "which Levee needs") {
		t.Errorf("a needed feature is missing: %v", err)
	}
	if err := failures([]*result{{}}); err == nil {
		t.Error("no tests at all are no failure")
	}
}

func of(release string, count uint32, packages ...string) *result {
	r := &result{Probe: plan.Probe{Release: release, Instructions: map[string]uint32{"everything": count}}}
	for _, p := range packages {
		r.Tests = append(r.Tests, &tests{Package: p, Passed: int(count)})
	}
	return r
}

func TestCompare(t *testing.T) {
	known := kept{"6.1": of("6.1.1", 1000)}
	for count, bad := range map[uint32]bool{1000: false, 1100: false, 1101: true, 2000: true, 100: false} {
		notes, err := known.compare([]*result{of("6.1.9", count)})
		if (err != nil) != bad || (len(notes) == 1) != (count == 100) {
			t.Errorf("%d: %v, %v", count, notes, err)
		}
	}
	if notes, err := known.compare([]*result{of("6.99.1", 1)}); err != nil || len(notes) != 1 {
		t.Errorf("an unknown series: %v, %v", notes, err)
	}
}

func TestKeep(t *testing.T) {
	k := kept{"6.1": of("6.1.1", 1, "bpf", "maps"), "6.12": of("6.12.1", 1, "bpf"), "6.6": of("6.6.1", 1)}
	k.keep([]*result{of("6.1.1", 2, "loader", "bpf"), of("6.12.2", 2, "maps")})
	got := func(series string) (list []string) {
		for _, m := range k[series].Tests {
			list = append(list, fmt.Sprint(m.Package, m.Passed))
		}
		return list
	}
	if diff := cmp.Diff([]string{"bpf2", "loader2", "maps1"}, got("6.1")); diff != "" {
		t.Error("of the same release:", diff)
	}
	if diff := cmp.Diff([]string{"maps2"}, got("6.12")); diff != "" {
		t.Error("of another release:", diff)
	}
	k.keep([]*result{of("6.1.1", 3)}) // -probe
	if diff := cmp.Diff([]string{"bpf2", "loader2", "maps1"}, got("6.1")); diff != "" || k["6.1"].Instructions["everything"] != 3 {
		t.Error("without tests:", diff)
	}
	var order []string
	for _, r := range k.inOrder() {
		order = append(order, r.series())
	}
	if diff := cmp.Diff([]string{"6.1", "6.6", "6.12"}, order); diff != "" {
		t.Error(diff)
	}
}

// before says whether a version of Linux is older than another.
func before(version, other string) bool {
	var a, b [2]int
	_, _ = fmt.Sscanf(version, "%d.%d", &a[0], &a[1])
	_, _ = fmt.Sscanf(other, "%d.%d", &b[0], &b[1])
	return slices.Compare(a[:], b[:]) < 0
}

func variantsOf(k kept) map[string]bool {
	all := make(map[string]bool)
	for _, r := range k {
		for variant := range r.Instructions {
			all[variant] = true
		}
	}
	return all
}

// The page says what is kept, and that is green.
func TestPage(t *testing.T) {
	t.Chdir("../..")
	k, err := readKept()
	if err != nil {
		t.Fatal(err)
	}
	newer, host := false, false
	for series, r := range k {
		newer = newer || !r.Host && !before(series, "6.13")
		host = host || r.Host
		if !slices.ContainsFunc(r.Tests, func(m *tests) bool { return m.Package == "loader" }) {
			t.Errorf("%s: nothing was attached: the tests of loader are not kept", series)
		}
		for variant := range variantsOf(k) {
			if r.Instructions[variant] == 0 {
				t.Errorf("%s: no count of %q", series, variant)
			}
		}
		for _, other := range k {
			for _, f := range other.Features {
				if r.has(f.Name) == "not asked" {
					t.Errorf("%s: whether it has %q is not kept", series, f.Name)
				}
			}
		}
		for _, f := range r.Features {
			if f.Present && before(series, f.Since) {
				t.Errorf("%s is said to have what came with %s: %s", series, f.Since, f.Name)
			}
		}
	}
	if k["6.1"] == nil || k["6.12"] == nil || !newer || !host {
		t.Errorf("kept are %v, and not 6.1, 6.12, a newer one and a host's; run `make test-kernels UPDATE=1`", slices.Sorted(maps.Keys(k)))
	}
	page, err := os.ReadFile(pageFile)
	if err != nil || string(page) != k.page() {
		t.Errorf("%s is not what %s gives; run `make test-kernels UPDATE=1` (%v)", pageFile, keptFile, err)
	}
	if err := failures(k.inOrder()); err != nil {
		t.Error(err)
	}
}

// The archive is what the kernel's documentation says: read back here field by field.
func TestArchive(t *testing.T) {
	name := filepath.Join(t.TempDir(), "a")
	a, err := newArchive(name)
	if err != nil {
		t.Fatal(err)
	}
	a.add("/init", []byte("1"))
	a.add("/a/b/c", []byte("four"))
	a.add("/a/d", []byte("12345"))
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(zip)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for at := 0; at < len(b); {
		if string(b[at:at+6]) != "070701" {
			t.Fatalf("no magic at %d", at)
		}
		field := func(i int) int {
			n, err := strconv.ParseUint(string(b[at+6+8*i:at+14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			return int(n)
		}
		mode, size, length := field(1), field(6), field(11)
		name := string(b[at+110 : at+110+length-1])
		start := (at + 110 + length + 3) &^ 3
		got = append(got, fmt.Sprintf("%s %o %s", name, mode, b[start:start+size]))
		at = (start + size + 3) &^ 3
	}
	if diff := cmp.Diff([]string{"init 100755 1", "a 40755 ", "a/b 40755 ", "a/b/c 100755 four", "a/d 100755 12345", "TRAILER!!! 0 "}, got); diff != "" {
		t.Error(diff)
	}
}

// fakeModule is an ELF file with nothing but a section .modinfo.
func fakeModule(t *testing.T, info string) []byte {
	t.Helper()
	names := "\x00.modinfo\x00.shstrtab\x00"
	header := elf.Header64{
		Ident: [16]byte{0x7F, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2, Shoff: 64,
	}
	at := uint64(64 + 3*64)
	sections := []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: at, Size: uint64(len(info))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: at + uint64(len(info)), Size: uint64(len(names))},
	}
	var b bytes.Buffer
	for _, v := range []any{header, sections} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString(info + names)
	return b.Bytes()
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	for name, depends := range map[string]string{
		"virtio_net": "net_failover", "net_failover": "failover", "failover": "", "veth": "", "8021q": "mrp,garp", "garp": "stp-x", "mrp": "", "stp-x": "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name+".ko"), fakeModule(t, "license=GPL\x00depends="+depends+"\x00"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	all, err := modules(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range all {
		got = append(got, m.Name)
	}
	if diff := cmp.Diff([]string{"failover", "net_failover", "virtio_net", "veth", "mrp", "stp_x", "garp", "8021q"}, got); diff != "" {
		t.Error(diff)
	}
	if err := os.Remove(filepath.Join(dir, "virtio_net.ko")); err != nil {
		t.Fatal(err)
	}
	if _, err := modules(dir); err == nil {
		t.Error("no virtio_net, and no word of it")
	}
}

func TestCheckVersion(t *testing.T) {
	for _, c := range []struct{ said, want string }{
		{"QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopyright", ""},
		{"QEMU emulator version 11.0.0\n", ""},
		{"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\n", "too old"},
		{"QEMU emulator version 9.2.0\n", "too old"},
		{"", "no version"},
		{"something 10.0", "no version"},
		{"QEMU emulator version 99999999999999999999.0", "too old"},
	} {
		err := checkVersion(c.said)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v, want %q", c.said, err, c.want)
		}
	}
}
