// SPDX-License-Identifier: MIT

package page

import (
	"cmp"
	"reflect"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/minifleet/minifleet/config"
)

// Keys is the table of a configuration file's keys.
func Keys(name string, keys []config.Key) Table {
	t := Table{Name: name, Columns: []string{"key", "type", "default", "meaning", "variable"}, Written: "change it when"}
	for _, k := range keys {
		fallback := code(cmp.Or(k.Default, map[string]string{"integer": "0", "number": "0", "true or false": "false", "duration": "0s"}[k.Type]))
		if k.Required {
			fallback = "**required**"
		}
		t.Rows = append(t.Rows, []string{code(k.Name), k.Type, fallback, k.Help, code(k.Env)})
	}
	return t
}

// Flags is the table of a program's flags, those of its commands after its own.
func Flags(name string, program *kong.Application) Table {
	t := Table{Name: name, Columns: []string{"command", "flag or argument", "type", "default", "meaning", "variable"}}
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		if n.Hidden {
			return
		}
		command := code(strings.TrimSuffix(n.FullPath(), " <command>"))
		for _, p := range n.Positional {
			t.Rows = append(t.Rows, []string{command, code(p.Summary()), typeOf(p), fallback(p), p.Help, ""})
		}
		for _, f := range n.Flags {
			if f.Name != "help" && !f.Hidden {
				t.Rows = append(t.Rows, []string{command, code("--" + f.Name), typeOf(f.Value), fallback(f.Value), f.Help, code(strings.Join(f.Envs, ", "))})
			}
		}
		for _, child := range n.Children {
			walk(child)
		}
	}
	walk(program.Node)
	return t
}

func typeOf(v *kong.Value) string {
	switch t := v.Target.Type(); {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case v.Enum != "":
		return strings.ReplaceAll(v.Enum, ",", ", ")
	case t.Kind() == reflect.Bool:
		return "switch"
	case t.Kind() == reflect.Int, t.Kind() == reflect.Int64, t.Kind() == reflect.Uint64:
		return "integer"
	case t.Kind() == reflect.Float64:
		return "number"
	case t.Kind() == reflect.Slice:
		return "list, by commas"
	case t.Kind() == reflect.Map:
		return "NAME=VALUE"
	default:
		return "string"
	}
}

func fallback(v *kong.Value) string {
	if v.Required {
		return "**required**"
	}
	return code(v.Default)
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
