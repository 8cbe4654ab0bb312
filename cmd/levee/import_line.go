package main

import (
	"bytes"
	"encoding/json"

	"github.com/levee-xdp/levee/agent/state"
)

// writeItem writes an item on a line. Nearly all say so little that it can be written as it stands, which
// takes a fraction of encoding/json's time.
func writeItem(to *bytes.Buffer, item *state.BanItem) error {
	to.Reset()
	if !item.Expires.IsZero() || item.Monitor || item.Via != "" || !plain(item.Prefix) || !plain(string(item.Origin)) || !plain(item.Reason) || !plain(item.For) {
		return json.NewEncoder(to).Encode(item)
	}
	to.WriteString(`{"prefix":"`)
	to.WriteString(item.Prefix)
	for _, f := range [...]struct{ name, value string }{{"origin", string(item.Origin)}, {"reason", item.Reason}, {"for", item.For}} {
		if f.value != "" {
			to.WriteString(`","`)
			to.WriteString(f.name)
			to.WriteString(`":"`)
			to.WriteString(f.value)
		}
	}
	to.WriteString("\"}\n")
	return nil
}

// plain tells whether a text stands in JSON as it is.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}
