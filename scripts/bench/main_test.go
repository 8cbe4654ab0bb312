package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/client"
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
	base := []float64{100, 100, 100}
	live := func(how, family, subject string, rates ...float64) row {
		return row{Part: "live", Case: how, Family: family, Subject: subject, Unit: "/s", Figure: figureOf(rates)}.ratio(bare, rates, base)
	}
	r := &report{Rows: []row{
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: bare, Unit: "ns", Figure: figure{20, 19, 21}},
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: field, Unit: "ns", Figure: figure{200, 200, 200}},
		row{Part: "program", Case: oneSource, Family: "ipv4", Subject: filterLine, Unit: "ns", Figure: figure{38, 38, 38}}.
			ratio(bare, []float64{38}, []float64{20}),
		row{Part: "program", Case: oneSource, Family: "ipv4", Subject: fewestLines, Unit: "ns", Figure: figure{62, 62, 62}}.
			ratio(bare, []float64{62}, []float64{20}),
		{Part: "program", Case: oneSource, Family: "ipv4", Subject: levee, Unit: "ns", Figure: figure{50, 49, 51}, Ratio: 0.8, Against: fewestLines},
		row{Part: "program", Case: oneSource, Family: "ipv6", Subject: levee, Unit: "ns", Figure: figure{60, 60, 60}}.
			ratio("ipv4", []float64{60}, []float64{50}).atMost(1.5),
		row{Part: "program", Case: oneSource, Family: "ipv4", Subject: levee, Unit: "ns", Figure: figure{50, 49, 51}}.
			ratio(bare, []float64{50}, []float64{20}).atMost(2),
		live(ownCPUs, "ipv6", sourceRead, 95, 95, 95),
		live(ownCPUs, "ipv6", fewestLines, 80, 80, 80),
		live(ownCPUs, "ipv6", levee, 30, 30, 30).atLeast(0.9),
		live(ownCPUs, "ipv4", fewestLines, 80, 80, 80), // Levee is not judged
		live(oneCPU, "ipv4", sourceRead, 85, 85, 85),
		live(oneCPU, "ipv4", fewestLines, 80, 80, 80),
		live(oneCPU, "ipv4", levee, 20, 20, 20).atLeast(0.9),
		live(oneCPU, "ipv6", fewestLines, 80, 89, 97), // in some rounds it is not beyond
		live(oneCPU, "ipv6", levee, 20, 20, 20).atLeast(0.9),
		seconds("put all", []float64{0.3}, 0.2),
		seconds(readAndPut, []float64{0.3}, 1.5),
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
		"- Of 5 bounds 1 hold.\n- Of 2 times 1 are kept, on this machine.\n", "- A packet of ipv4 costs 0.25 to 0.25 times what it costs on an LPM trie and an LRU hash.\n",
		"- A packet of ipv6 costs 1.20 to 1.20 times what one of ipv4 does.\n",
		"- Missed: program one clean source ipv4 levee: 50.0 ns (2.50 x bare), bound at most 2\n",
		"- Over: control kernel tables put all: 0.3 s, bound at most 0.2\n",
		"- Beyond the reach of such tables: program one clean source ipv4, bound at most 2: with the fewest lines alone it is 3.10 x bare\n",
		"- Beyond the reach of such tables: live a CPU each ipv6, bound at least 0.9: with the fewest lines alone it is 0.80 x bare\n",
		"- Beyond any filter's reach: live sender and receiver on one CPU ipv4, bound at least 0.9: with the source read alone it is 0.85 x bare\n",
		"- xdp-filter is not installed\n"} {
		if strings.Count(string(doc), want) != 1 {
			t.Errorf("not once: %q", want)
		}
	}
	if n := strings.Count(string(doc), "Beyond "); n != 3 {
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

// Parts of another run are taken along if that was alike; both loads are told.
func TestAddAnotherRun(t *testing.T) {
	control := []row{seconds("put all", []float64{0.1}, 0.2)}
	for _, c := range []struct {
		name  string
		other report
		fails bool
	}{
		{"alike", report{Machine: machine{CPU: "a", Load: "0.5"}, Setup: "9 rounds", Rows: control}, false},
		{"another machine", report{Machine: machine{CPU: "b", Load: "0.5"}, Setup: "9 rounds", Rows: control}, true},
		{"other rounds", report{Machine: machine{CPU: "a", Load: "0.5"}, Setup: "3 rounds", Rows: control}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "other.json")
			if err := c.other.writeJSON(path); err != nil {
				t.Fatal(err)
			}
			r := &report{Machine: machine{CPU: "a", Load: "0.1"}, Setup: "9 rounds", Rows: []row{{Part: "live"}}}
			err := r.add([]string{path})
			if (err != nil) != c.fails {
				t.Fatal(err)
			}
			if !c.fails && (len(r.Rows) != 2 || r.Machine.Load != "0.1 and 0.5") {
				t.Errorf("%+v", r)
			}
		})
	}
}

// A daemon that can't be started, or ends, is said at once, and leaves nothing to stop.
func TestDaemonThatDoesNotStart(t *testing.T) {
	for _, binary := range []string{"/nonexistent", "/bin/false"} {
		d := &daemon{binary: binary, dir: t.TempDir()}
		d.client = client.New(client.Config{Socket: filepath.Join(d.dir, "sock")})
		if _, err := d.start(t.Context()); err == nil || strings.Contains(err.Error(), "not ready after") {
			t.Errorf("%s: %v", binary, err)
		}
		d.stop()
		d.client.Close()
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
	if _, err := flags([]string{"-rounds", "-1"}, false); err == nil {
		t.Error("fewer rounds than none were taken")
	}
}
