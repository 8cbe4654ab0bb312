package main

import (
	"bytes"
	"encoding/json"
	"testing"
	"time"

	"github.com/levee-xdp/levee/agent/state"
)

// TestWriteItem reads back what is written, a line each.
func TestWriteItem(t *testing.T) {
	var to bytes.Buffer
	for _, item := range []state.BanItem{
		{Prefix: "192.0.2.1/32"},
		{Prefix: "192.0.2.1", Origin: "feed:x", Reason: "listed there", For: "4h"},
		{Prefix: "2001:db8::/32", For: "1d"},
		{Prefix: "192.0.2.1", Reason: `a "quote" and a \`},
		{Prefix: "192.0.2.1", Reason: "ünder\n<script>&\u2028\x00"},
		{Prefix: "192.0.2.1", Monitor: true},
		{Prefix: "192.0.2.1", Via: "198.51.100.1"},
		{Prefix: "192.0.2.1", Expires: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)},
		{Prefix: "\"},{\""},
	} {
		if err := writeItem(&to, &item); err != nil {
			t.Fatal(err)
		}
		var got state.BanItem
		if err := json.Unmarshal(to.Bytes(), &got); err != nil || got != item {
			t.Errorf("%q: %+v, want %+v, %v", to.String(), got, item, err)
		}
		if n := bytes.Count(to.Bytes(), []byte("\n")); n != 1 || !bytes.HasSuffix(to.Bytes(), []byte("\n")) {
			t.Errorf("%q is not a line", to.String())
		}
	}
}
