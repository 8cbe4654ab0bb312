package config

import (
	"bytes"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"github.com/levee-xdp/levee/agent/state"
)

// Problem is one thing that is wrong with a file, and where.
type Problem struct {
	File         string
	Line, Column int // from 1; 0 if it is about the file as a whole
	Path         string
	Message      string
	source       string // the line
}

// String shows the place, the problem and the line with a mark under it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
	}
	b.WriteString(": ")
	b.WriteString(p.Message)
	if p.source == "" {
		return b.String()
	}
	number := strconv.Itoa(p.Line)
	// The mark is under the column whatever tabs and wide signs stand before it.
	lead := []rune(p.source)
	lead = lead[:min(max(p.Column-1, 0), len(lead))]
	for i, r := range lead {
		if r != '\t' {
			lead[i] = ' '
		}
	}
	fmt.Fprintf(&b, "\n  %s | %s\n  %s | %s^", number, p.source, strings.Repeat(" ", len(number)), string(lead))
	return b.String()
}

// Error is everything that is wrong with a file. Nothing of it is in force.
type Error struct {
	Problems []Problem
}

// Error shows each problem.
func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// maxProblems bounds what is shown of a file that is no configuration at all.
const maxProblems = 20

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

func (d *decoder) err() error {
	slices.SortStableFunc(d.problems, func(a, b Problem) int { return a.Line - b.Line })
	if len(d.problems) > maxProblems {
		more := len(d.problems) - maxProblems
		d.problems = append(d.problems[:maxProblems], Problem{File: d.file, Message: fmt.Sprintf("and %d more", more)})
	}
	return &Error{d.problems}
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

func lineOf(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
}

func (d *decoder) problem(t *token.Token, path, format string, args ...any) {
	p := Problem{File: d.file, Path: path, Message: fmt.Sprintf(format, args...)}
	if t != nil && t.Position != nil {
		p.Line, p.Column = t.Position.Line, max(t.Position.Column, 1)
		if p.Line >= 1 && p.Line <= len(d.source) {
			p.source = strings.TrimRight(d.source[p.Line-1], "\r")
			p.Column = valueColumn(t, p.source, p.Column)
		}
	}
	d.problems = append(d.problems, p)
}

// valueColumn returns where a token's value begins: the scanner counts tabs before it to it.
func valueColumn(t *token.Token, line string, column int) int {
	if t.Type == token.InvalidType {
		return column
	}
	runes := []rune(line)
	for i := column - 1; i < len(runes); i++ {
		if runes[i] != ' ' && runes[i] != '\t' {
			return i + 1
		}
	}
	return column
}

// tokenOf returns where a node begins. A mapping's own token is its first colon.
func tokenOf(n ast.Node) *token.Token {
	switch n := n.(type) {
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return n.Values[0].Key.GetToken()
		}
	case *ast.MappingValueNode:
		return n.Key.GetToken()
	}
	return n.GetToken()
}

// problemAt reports an error at the place of its field, or of the nearest that the file has around it.
func (d *decoder) problemAt(err *state.Error) {
	path := err.Field
	for {
		if t, ok := d.tokens[path]; ok {
			d.problem(t, err.Field, "%s", err.Error())
			return
		}
		i := strings.LastIndexAny(path, ".[")
		if i < 0 {
			d.problem(nil, err.Field, "%s", err.Error())
			return
		}
		path = path[:i]
	}
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

// parse makes a tree of a text. The parser panics on some texts that nobody would write.
func parse(text []byte) (_ *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the parser gave up on it: %v", p)
		}
	}()
	if depth(text) > maxDepth {
		return nil, fmt.Errorf("brackets more than %d deep", maxDepth)
	}
	// Doubled keys are told by the decoder, with both places.
	return parser.ParseBytes(text, 0, parser.AllowDuplicateMapKey())
}

// maxLine bounds a line, in bytes: the parser's time grows with its square.
const maxLine = 8 << 10

// maxDepth bounds what the parser recurses into.
const maxDepth = 100

func depth(text []byte) (deepest int) {
	open := 0
	for _, c := range text {
		switch c {
		case '[', '{':
			open++
			deepest = max(deepest, open)
		case ']', '}':
			open--
		}
	}
	return deepest
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

func isMapping(n ast.Node) bool {
	return n.Type() == ast.MappingType || n.Type() == ast.MappingValueType
}

// scalar returns the text of a node that is one value.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

// kind says in words what a node is.
func kind(n ast.Node) string {
	if text, ok := scalar(n); ok {
		return strconv.Quote(clip(text))
	}
	switch n.Type() {
	case ast.SequenceType:
		return "a list"
	case ast.MappingType, ast.MappingValueType:
		return "a group of settings"
	default:
		return "a " + strings.ToLower(n.Type().String())
	}
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

// clip bounds what is shown of a value.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
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

// suggest names the setting that was perhaps meant.
func suggest(key string, fields map[string][]int) string {
	best, least := "", min(len(key)/2, 2)+1
	names := make([]string, 0, len(fields))
	for name := range fields {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if n := distance(key, name); n < least {
			best, least = name, n
		}
	}
	if best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return "; there are " + strings.Join(names, ", ")
}

// distance is how many letters must change to make one word of another.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return len(a) + len(b)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
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
