// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// explain turns an error of the YAML library into "line:column: what is wrong".
// The library's own text quotes the lines around the place, which can be secrets.
func explain(text []byte, keys []Key, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		if found := locate(text, keys); found != nil {
			return found
		}
		return fmt.Errorf(" %w", err)
	}
	where := at.GetToken().Position
	what := at.GetMessage()
	if mismatch, ok := errors.AsType[*yaml.TypeError](err); ok {
		what = "want " + wanted(mismatch.DstType)
	}
	return fmt.Errorf("%d:%d: %s", where.Line, where.Column, what)
}

func wanted(t reflect.Type) string {
	switch k := kindOf(t); k {
	case kindDuration:
		return "a duration, such as 90s, 5m or 2h"
	case kindSection, kindOther:
		return "a section of keys"
	case kindInt:
		return "an integer"
	default:
		return "a " + string(k)
	}
}

// locate finds the first value that should be a duration or a secret and is none:
// the library reports those without a place.
func locate(text []byte, keys []Key) error {
	file, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil
	}
	find := finder{kinds: map[string]kind{}}
	for _, k := range keys {
		find.kinds[k.Name[strings.LastIndexByte(k.Name, '.')+1:]] = kind(k.Type)
	}
	for _, doc := range file.Docs {
		ast.Walk(&find, doc.Body)
	}
	return find.found
}

type finder struct {
	kinds map[string]kind // by the last part of the key
	found error
}

// Visit looks at one node of the document.
func (f *finder) Visit(n ast.Node) ast.Visitor {
	pair, ok := n.(*ast.MappingValueNode)
	if !ok || f.found != nil {
		return f
	}
	var wrong error
	switch value, isText := pair.Value.(*ast.StringNode); f.kinds[pair.Key.GetToken().Value] {
	case kindDuration:
		if isText {
			_, wrong = parseDuration(value.Value)
		}
	case kindSecret:
		if _, scalar := pair.Value.(ast.ScalarNode); !scalar {
			wrong = errors.New("want a secret, as text")
		}
	}
	if wrong != nil {
		where := pair.Value.GetToken().Position
		f.found = fmt.Errorf("%d:%d: %w", where.Line, where.Column, wrong)
	}
	return f
}
