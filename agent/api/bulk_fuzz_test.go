package api

import (
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
