package api

import (
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// simpleItem reads an item as nearly all are written: an object without white space, whose values are
// strings of printable ASCII without a backslash. Of any other it says so, and encoding/json reads it.
func simpleItem(line []byte) (item state.BanItem, ok bool) {
	text, ok := strings.CutPrefix(string(line), "{")
	for first := true; ok; first = false {
		if text == "}" {
			return item, !first
		}
		if !first {
			if text, ok = strings.CutPrefix(text, ","); !ok {
				break
			}
		}
		var name, value string
		if name, text, ok = simpleString(text); !ok || !strings.HasPrefix(text, ":") {
			break
		}
		if value, text, ok = simpleString(text[1:]); !ok || value == "" {
			break
		}
		field := (*string)(nil)
		switch name {
		case "prefix":
			field = &item.Prefix
		case "origin":
			field = (*string)(&item.Origin)
		case "reason":
			field = &item.Reason
		case "for":
			field = &item.For
		}
		if field == nil || *field != "" { // another one, or one that is there twice
			break
		}
		*field = value
	}
	return state.BanItem{}, false
}

// simpleString cuts a string off the beginning of a text.
func simpleString(text string) (value, rest string, ok bool) {
	if !strings.HasPrefix(text, `"`) {
		return "", "", false
	}
	for i := 1; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			return text[1:i], text[i+1:], true
		case c == '\\' || c < ' ' || c > '~':
			return "", "", false
		}
	}
	return "", "", false
}
