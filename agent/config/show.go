package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// Setting is one effective setting, and where its value comes from.
type Setting struct {
	Path  string `json:"path"`
	Value string `json:"value"`
	From  string `json:"from"` // default, or the file and line
}

// Settings returns every setting with its effective value, in the order of the reference.
func (c *Config) Settings() []Setting {
	var out []Setting
	c.walk(reflect.ValueOf(c).Elem(), "", &out)
	return out
}

func (c *Config) walk(v reflect.Value, path string, out *[]Setting) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	add := func(value string) { *out = append(*out, Setting{path, value, c.from(path)}) }
	switch value := v.Interface().(type) {
	case state.Threshold:
		add(value.String())
		return
	case encoding.TextMarshaler:
		text, err := value.MarshalText()
		if err != nil {
			text = []byte(err.Error())
		}
		add(string(text))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, f := range reflect.VisibleFields(v.Type()) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || name == "" || name == "-" {
				continue
			}
			field := v.FieldByIndex(f.Index)
			if strings.HasPrefix(options, "omit") && field.IsZero() {
				continue
			}
			c.walk(field, join(path, name), out)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) })
		for _, k := range keys {
			c.walk(v.MapIndex(k), join(path, k.String()), out)
		}
		if len(keys) == 0 {
			add("none")
		}
	case reflect.Slice:
		if v.Len() == 0 {
			add("none")
		}
		for i := range v.Len() {
			c.walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i), out)
		}
	case reflect.Bool:
		add(strconv.FormatBool(v.Bool()))
	default:
		add(fmt.Sprint(v.Interface()))
	}
}

// from says where a setting's value comes from.
func (c *Config) from(path string) string {
	for at := path; at != ""; {
		if line, ok := c.lines[at]; ok && c.lines != nil {
			if at == path || strings.HasSuffix(at, "]") || c.isWhole(at) {
				return fmt.Sprintf("%s:%d", c.file, line)
			}
		}
		i := strings.LastIndexAny(at, ".[")
		if i < 0 {
			break
		}
		at = at[:i]
	}
	return "default"
}

// isWhole tells whether what stands at a path was written as one value.
func (c *Config) isWhole(path string) bool {
	for other := range c.lines {
		if strings.HasPrefix(other, path+".") || strings.HasPrefix(other, path+"[") {
			return false
		}
	}
	return true
}
