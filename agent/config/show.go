package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/levee-xdp/levee/agent/state"
)

// mark says who gave the settings at a path, and below it, their values.
type mark struct {
	origin state.SettingOrigin
	from   string
}

// Mark notes that the settings at a path and below it come from elsewhere than the file, and from where
// exactly.
func (c *Config) Mark(path string, origin state.SettingOrigin, from string) {
	c.MarkAll(map[string]string{path: from}, origin)
}

// MarkAll is Mark for many paths, each with where its settings come from.
func (c *Config) MarkAll(paths map[string]string, origin state.SettingOrigin) {
	marks := maps.Clone(c.marks) // copies of the configuration share them
	if marks == nil {
		marks = map[string]mark{}
	}
	for path, from := range paths {
		marks[path] = mark{origin, from}
	}
	c.marks = marks
}

// Settings returns every setting with its effective value, in the order of the reference.
func (c *Config) Settings() []state.Setting {
	var out []state.Setting
	c.walk(reflect.ValueOf(c).Elem(), "", &out)
	return out
}

func (c *Config) walk(v reflect.Value, path string, out *[]state.Setting) {
	if v.Kind() == reflect.Pointer {
		if v.IsNil() {
			return
		}
		v = v.Elem()
	}
	add := func(value string) {
		origin, from := c.origin(path)
		*out = append(*out, state.Setting{Path: path, Value: value, Origin: origin, From: from})
	}
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

// origin says where a setting's value comes from.
func (c *Config) origin(path string) (origin state.SettingOrigin, from string) {
	for at := path; at != ""; at = parent(at) {
		if m, ok := c.marks[at]; ok {
			return m.origin, m.from
		}
	}
	for at := path; at != ""; at = parent(at) {
		if line, ok := c.lines[at]; ok && (at == path || strings.HasSuffix(at, "]") || c.isWhole(at)) {
			return state.SettingFile, fmt.Sprintf("%s:%d", c.file, line)
		}
	}
	return state.SettingDefault, string(state.SettingDefault)
}

// parent is the path of what a setting belongs to; empty if to none.
func parent(path string) string { return path[:max(strings.LastIndexAny(path, ".["), 0)] }

// isWhole tells whether what stands at a path was written as one value.
func (c *Config) isWhole(path string) bool {
	for other := range c.lines {
		if strings.HasPrefix(other, path+".") || strings.HasPrefix(other, path+"[") {
			return false
		}
	}
	return true
}
