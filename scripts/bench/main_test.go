package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A part that fails is said and makes the run fail, and the others are measured all the same.
func TestPartsThatFail(t *testing.T) {
	ran := ""
	does := func(name string, err error) part {
		return part{name, func(*bench, context.Context) error {
			ran += name
			return err
		}}
	}
	b := &bench{}
	all := []part{does("a", nil), does("b", errors.New("no room")), does("c", nil), does("d", errors.New("no time"))}
	err := b.runParts(t.Context(), all)
	if ran != "abcd" || err == nil || !strings.Contains(err.Error(), "b, d") {
		t.Errorf("ran %q, and said %v", ran, err)
	}
	b.only, ran = []string{"c", "a"}, ""
	if err := b.runParts(t.Context(), all); ran != "ac" || err != nil {
		t.Errorf("of a and c ran %q, and said %v", ran, err)
	}
}

// A report replaces the one of a document, the rest of which stays; its text names what it measured.
func TestReportIntoDocument(t *testing.T) {
	path := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(path, []byte("before\n"+reportBegin+"the last one\n"+reportEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &report{Rows: []row{
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: bare, Unit: "ns", Figure: figure{20, 19, 21}},
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: field, Unit: "ns", Figure: figure{200, 200, 200}},
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: filterLine, Unit: "ns", Figure: figure{38, 38, 38}, Ratio: 1.9, Against: bare},
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: fewestLines, Unit: "ns", Figure: figure{62, 62, 62}, Ratio: 3.1, Against: bare},
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: levee, Unit: "ns", Figure: figure{50, 49, 51}, Ratio: 0.8, Against: fewestLines},
		row{Part: "program", Case: oneSource, Family: "ipv6", Subject: levee, Unit: "ns", Figure: figure{60, 60, 60}}.
			ratio("ipv4", []float64{60}, []float64{50}).atMost(1.5),
		row{Part: "program", Case: oneSource, Family: "ipv4", Subject: levee, Unit: "ns", Figure: figure{50, 49, 51}}.
			ratio(bare, []float64{50}, []float64{20}).atMost(2),
		{Part: "live", Case: ownCPUs, Family: "ipv6", Subject: sourceRead, Unit: "/s", Figure: figure{95, 95, 95}, Ratio: 0.95, Against: bare},
		{Part: "live", Case: ownCPUs, Family: "ipv6", Subject: fewestLines, Unit: "/s", Figure: figure{80, 80, 80}, Ratio: 0.8, Against: bare},
		row{Part: "live", Case: ownCPUs, Family: "ipv6", Subject: levee, Unit: "/s", Figure: figure{30, 30, 30}}.
			ratio(bare, []float64{30}, []float64{100}).atLeast(0.9),
		{Part: "live", Case: ownCPUs, Family: "ipv4", Subject: fewestLines, Unit: "/s", Figure: figure{80, 80, 80}, Ratio: 0.8, Against: bare},
		{Part: "live", Case: oneCPU, Family: "ipv4", Subject: sourceRead, Unit: "/s", Figure: figure{85, 85, 85}, Ratio: 0.85, Against: bare},
		{Part: "live", Case: oneCPU, Family: "ipv4", Subject: fewestLines, Unit: "/s", Figure: figure{80, 80, 80}, Ratio: 0.8, Against: bare},
		row{Part: "live", Case: oneCPU, Family: "ipv4", Subject: levee, Unit: "/s", Figure: figure{20, 20, 20}}.
			ratio(bare, []float64{20}, []float64{100}).atLeast(0.9),
		{Part: "live", Case: oneCPU, Family: "ipv6", Subject: fewestLines, Unit: "/s", Figure: figure{70, 70, 70}, Ratio: 0.7, Against: bare},
	}, Notes: []string{"xdp-filter is not installed"}}
	for range 2 {
		if err := r.writeDocs(path); err != nil {
			t.Fatal(err)
		}
	}
	doc, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"before\n" + reportBegin, reportEnd + "after\n", "### program\n",
		"| one clean source | ipv4 | levee | 50.0 ns | 49.0 .. 51.0 | 2.50 x bare | at most 2 | MISSED |  |\n",
		"- Of 4 bounds 1 hold.\n", "- A packet of ipv4 costs 0.25 to 0.25 times what it costs on an LPM trie and an LRU hash.\n",
		"- A packet of ipv6 costs 1.20 to 1.20 times what one of ipv4 does.\n",
		"- Missed: program one clean source ipv4 levee: 50.0 ns (2.50 x bare), bound at most 2\n",
		"- Beyond reach: program one clean source ipv4, bound at most 2: with the fewest lines alone it is 3.10 x bare\n",
		"- Beyond reach: live a CPU each ipv6, bound at least 0.9: with the fewest lines alone it is 0.80 x bare\n",
		"- Beyond reach: live sender and receiver on one CPU ipv4, bound at least 0.9: with the source read alone it is 0.85 x bare\n",
		"- xdp-filter is not installed\n"} {
		if strings.Count(string(doc), want) != 1 {
			t.Errorf("not once: %q", want)
		}
	}
	if n := strings.Count(string(doc), "Beyond reach"); n != 3 {
		t.Errorf("%d bounds beyond reach; what holds, or is not judged, is not", n)
	}
	if strings.Contains(string(doc), "the last one") {
		t.Error("the report before is still there")
	}
	var table bytes.Buffer
	r.print(&table)
	for line := range strings.Lines(table.String()) {
		if width := len([]rune(strings.TrimRight(line, " \n"))); width > 160 {
			t.Errorf("a line of %d columns: %s", width, line)
		}
	}
	if err := os.WriteFile(path, []byte("no marks\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.writeDocs(path); err == nil {
		t.Error("put into a document that has no place for it")
	}
}

// A quick run is smaller than a whole one in everything, and of all parts, too.
func TestQuickIsSmall(t *testing.T) {
	whole, err := flags(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	quick, err := flags(nil, true)
	if err != nil {
		t.Fatal(err)
	}
	if !quick.quick || whole.quick || len(quick.only)+len(whole.only) > 0 {
		t.Errorf("whole %+v, quick %+v", whole, quick)
	}
	if err := errors.Join(quick.sizes.Validate(), whole.sizes.Validate()); err != nil {
		t.Error(err)
	}
	if quick.bans4 > quick.sizes.Ban4Entries || quick.bans6 > quick.sizes.Ban6Entries {
		t.Errorf("%d and %d bans do not fit %+v", quick.bans4, quick.bans6, quick.sizes)
	}
	if quick.meter.rounds < 2 || quick.meter.rounds*quick.meter.tries*8 > whole.meter.rounds*whole.meter.tries {
		t.Errorf("%+v is no short version of %+v", quick.meter, whole.meter)
	}
	if _, err := flags([]string{"-only", "program,speed"}, false); err == nil {
		t.Error("a part that there is not was taken")
	}
}
