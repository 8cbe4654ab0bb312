package api

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/levee-xdp/levee/agent/state"
)

// Every line of a bulk is an item or says what is wrong with it, and has its number.
func FuzzBulk(f *testing.F) {
	for _, s := range []string{"192.0.2.1\n", "# x\n\n2001:db8::/32 ; y\r\n", `{"prefix":"192.0.2.1","for":"4h"}` + "\n{\n", `{"prefix":"a","prefix":"b"}`, "\xff\n\x00", strings.Repeat("1", 10_000)} {
		f.Add(true, s)
		f.Add(false, s)
	}
	f.Fuzz(func(t *testing.T, plain bool, body string) {
		parse := jsonLine
		if plain {
			parse = plainLine
		}
		last := 0
		err := eachLine(strings.NewReader(body), func() {}, parse, func(l state.BulkLine) bool {
			if l.Number <= last || l.Number > strings.Count(body, "\n")+1 {
				t.Fatalf("line %d behind %d", l.Number, last)
			}
			if last = l.Number; l.Err == nil && l.Item.Prefix == "" && plain {
				t.Fatalf("line %d: nothing, and nothing wrong with it", l.Number)
			}
			return true
		})
		if err != nil {
			t.Fatal(err) // a string does not break off
		}
	})
}

// What simpleItem reads it reads as encoding/json does.
func FuzzSimpleItem(f *testing.F) {
	for _, s := range []string{`{"prefix":"192.0.2.1"}`, `{"prefix":"192.0.2.1","origin":"api","reason":"a b","for":"4h"}`,
		`{"prefix":"a","prefix":"b"}`, `{"Prefix":"a"}`, `{"prefix":"a",}`, `{"prefix":"\u0061"}`, `{"prefix":""}`, `{}`, `{"prefix":"ä"}`,
		`{"prefix":"a"}}`, `{"prefix":"a"}{"prefix":"b"}`, `{"via":"a"}`, `{"prefix":"a" }`, "{\"reason\":\"\xff\"}", `{"reason":"x"}`, `{,"prefix":"a"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		got, ok := simpleItem([]byte(line))
		if !ok {
			return
		}
		d := json.NewDecoder(strings.NewReader(line))
		d.DisallowUnknownFields()
		var want state.BanItem
		if err := d.Decode(&want); err != nil || d.More() || got != want || want == (state.BanItem{}) {
			t.Errorf("%q: %+v, want %+v, %v", line, got, want, err)
		}
	})
}

// TestSimpleItem is for the usual lines: they take no more than the line itself.
func TestSimpleItem(t *testing.T) {
	line := []byte(`{"prefix":"192.0.2.1/32","origin":"feed:x","reason":"listed there","for":"4h"}`)
	want := state.BanItem{Prefix: "192.0.2.1/32", Origin: "feed:x", Reason: "listed there", For: "4h"}
	if got, ok := simpleItem(line); !ok || got != want {
		t.Errorf("%+v, %t", got, ok)
	}
	if n := testing.AllocsPerRun(100, func() { simpleItem(line) }); n > 1 {
		t.Errorf("%v allocations a line", n)
	}
}
