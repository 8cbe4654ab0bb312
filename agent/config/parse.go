package config

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

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

func lineOf(t *token.Token) int {
	if t == nil || t.Position == nil {
		return 0
	}
	return t.Position.Line
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
