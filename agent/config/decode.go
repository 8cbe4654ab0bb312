package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"

	"github.com/levee-xdp/levee/agent/state"
)

// decoder walks a file's tree and the configuration's types together, so that it knows of each
// value where it stands.
type decoder struct {
	file     string
	text     []byte
	source   []string
	problems []Problem
	tokens   map[string]*token.Token
}

func newDecoder(file string, text []byte) *decoder {
	text = bytes.TrimPrefix(text, []byte("\ufeff"))
	return &decoder{file: file, text: text, source: strings.Split(string(text), "\n"), tokens: map[string]*token.Token{}}
}

func (d *decoder) lines() map[string]int {
	out := make(map[string]int, len(d.tokens))
	for path, t := range d.tokens {
		if line := lineOf(t); line != 0 {
			out[path] = line
		}
	}
	return out
}

func (d *decoder) decode(c *Config) {
	switch {
	case len(d.text) > maxFile:
		d.problem(nil, "", "is longer than %d bytes, which is no configuration", maxFile)
		return
	case !utf8.Valid(d.text):
		d.problem(nil, "", "is not valid UTF-8")
		return
	}
	for i, line := range d.source {
		if len(line) > maxLine {
			d.problem(nil, "", "line %d has %d bytes; write long lists an item a line", i+1, len(line))
			return
		}
	}
	file, err := parse(d.text)
	if err != nil {
		if e, ok := errors.AsType[yaml.Error](err); ok {
			d.problem(e.GetToken(), "", "not YAML: %s", e.GetMessage())
		} else {
			d.problem(nil, "", "not YAML: %v", err)
		}
		return
	}
	bodies := 0
	for _, doc := range file.Docs {
		if doc.Body == nil || doc.Body.Type() == ast.CommentType {
			continue
		}
		if bodies++; bodies > 1 {
			d.problem(tokenOf(doc.Body), "", "a second document: one file is one configuration")
			return
		}
		d.value(doc.Body, reflect.ValueOf(c).Elem(), "")
	}
}

// shorthands are the structs that may be written as a scalar, and the field which that is.
var shorthands = map[reflect.Type]string{
	reflect.TypeFor[state.Threshold](): "Rate",
	reflect.TypeFor[state.AllowSpec](): "Prefix",
	reflect.TypeFor[Interface]():       "Name",
}

const noReferences = "anchors, aliases, tags and merge keys are not used here; write it out"

// value decodes a node into v, which stands at a path such as limits.web.packets.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	t := tokenOf(n)
	if path != "" {
		if _, ok := d.tokens[path]; !ok {
			d.tokens[path] = t
		}
	}
	switch n.Type() {
	case ast.AnchorType, ast.AliasType, ast.TagType, ast.MergeKeyType, ast.DirectiveType:
		d.problem(t, path, "%s%s", in(path), noReferences)
		return
	case ast.NullType:
		return // nothing is said: the default stands
	default:
	}
	if v.Kind() == reflect.Pointer {
		if v.IsNil() || !isMapping(n) {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		text, ok := scalar(n)
		if !ok {
			d.problem(t, path, "%sis %s, and should be one value", in(path), kind(n))
			return
		}
		if err := u.UnmarshalText([]byte(text)); err != nil {
			d.problem(t, path, "%s%s", in(path), err)
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.structure(n, v, path)
	case reflect.Map:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	case reflect.Bool:
		b, ok := n.(*ast.BoolNode)
		if !ok {
			d.problem(t, path, "%sis %s, and should be true or false", in(path), kind(n))
			return
		}
		v.SetBool(b.Value)
	case reflect.Int:
		text, _ := scalar(n)
		i, err := strconv.ParseInt(text, 10, 32)
		if err != nil {
			d.problem(t, path, "%sis %s, and should be a whole number", in(path), kind(n))
			return
		}
		v.SetInt(i)
	case reflect.String:
		text, ok := scalar(n)
		if !ok {
			d.problem(t, path, "%sis %s, and should be text", in(path), kind(n))
			return
		}
		v.SetString(text)
	default:
		panic("a type that the decoder does not know: " + v.Type().String())
	}
}

func in(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}

// pairs returns a mapping's keys and values.
func (d *decoder) pairs(n ast.Node, path string, each func(key string, k, v ast.Node)) bool {
	var values []*ast.MappingValueNode
	switch n := n.(type) {
	case *ast.MappingNode:
		values = n.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{n}
	default:
		d.problem(tokenOf(n), path, "%sis %s, and should be a group of settings, each `name: value`", in(path), kind(n))
		return false
	}
	seen := map[string]int{}
	for _, pair := range values {
		if pair.Key.Type() == ast.MergeKeyType {
			d.problem(pair.Key.GetToken(), path, "%s%s", in(path), noReferences)
			continue
		}
		key, ok := scalar(pair.Key)
		if !ok {
			d.problem(pair.Key.GetToken(), path, "%sa name should stand here", in(path))
			continue
		}
		if line, ok := seen[key]; ok {
			d.problem(pair.Key.GetToken(), join(path, key), "%s%q stands here twice; first on line %d", in(path), clip(key), line)
			continue
		}
		seen[key] = lineOf(pair.Key.GetToken())
		each(key, pair.Key, pair.Value)
	}
	return true
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func (d *decoder) structure(n ast.Node, v reflect.Value, path string) {
	if short, ok := shorthands[v.Type()]; ok && !isMapping(n) {
		d.value(n, v.FieldByName(short), path)
		return
	}
	fields := fieldsOf(v.Type())
	d.pairs(n, path, func(key string, k, value ast.Node) {
		index, ok := fields[key]
		if !ok {
			d.problem(k.GetToken(), join(path, key), "%s%q is not a setting%s", in(path), clip(key), suggest(key, fields))
			return
		}
		at := join(path, key)
		d.tokens[at] = tokenOf(value)
		if value.Type() == ast.NullType || isMapping(value) {
			d.tokens[at] = k.GetToken()
		}
		d.value(value, v.FieldByIndex(index), at)
	})
}

// fieldsOf returns a struct's settings by name, those of embedded structs included.
func fieldsOf(t reflect.Type) map[string][]int {
	out := map[string][]int{}
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.IsExported() && name != "" && name != "-" {
			out[name] = f.Index
		}
	}
	return out
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	out := reflect.MakeMap(v.Type())
	if !d.pairs(n, path, func(key string, k, value ast.Node) {
		e := reflect.New(v.Type().Elem()).Elem()
		at := join(path, key)
		d.tokens[at] = k.GetToken()
		d.value(value, e, at)
		out.SetMapIndex(reflect.ValueOf(key), e)
	}) {
		return
	}
	v.Set(out)
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	list, ok := n.(*ast.SequenceNode)
	if !ok {
		d.problem(tokenOf(n), path, "%sis %s, and should be a list", in(path), kind(n))
		return
	}
	out := reflect.MakeSlice(v.Type(), len(list.Values), len(list.Values))
	for i, item := range list.Values {
		at := fmt.Sprintf("%s[%d]", path, i)
		if item == nil || item.Type() == ast.NullType {
			d.problem(n.GetToken(), at, "%sis empty", in(at))
			continue
		}
		d.value(item, out.Index(i), at)
	}
	v.Set(out)
}
