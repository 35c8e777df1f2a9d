// SPDX-License-Identifier: MIT

package config

import (
	"fmt"
	"io"
	"reflect"
	"text/tabwriter"
)

// Key describes one key of a configuration for people.
type Key struct {
	Name     string // with its sections: limits.boot, pools[].name
	Env      string // the variable that wins over it, "" if none does
	Type     string
	Default  string
	Required bool
	Help     string
}

// Describe returns all keys of T in the order of its fields.
func Describe[T any](envPrefix string) []Key {
	return describe(reflect.New(reflect.TypeFor[T]()).Elem(), "", envPrefix)
}

func describe(v reflect.Value, prefix, envPrefix string) []Key {
	var keys []Key
	for f := range fields(v) {
		name := prefix + f.key
		key := Key{Name: name, Type: string(f.kind), Default: f.fallback, Required: f.required, Help: f.help}
		if f.kind.scalar() && envPrefix != "" {
			key.Env = envName(envPrefix, f.key)
		}
		keys = append(keys, key)
		switch f.kind {
		case kindSection:
			keys = append(keys, describe(f.value, name+".", sectionPrefix(envPrefix, f.key))...)
		case kindSections:
			element := reflect.New(f.value.Type().Elem()).Elem()
			keys = append(keys, describe(element, name+"[].", "")...)
		}
	}
	return keys
}

func sectionPrefix(envPrefix, key string) string {
	if envPrefix == "" {
		return ""
	}
	return envName(envPrefix, key)
}

// WriteHelp writes a table of all keys of T to w.
func WriteHelp[T any](w io.Writer, envPrefix string) error {
	table := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "KEY\tTYPE\tDEFAULT\tMEANING")
	for _, k := range Describe[T](envPrefix) {
		fallback := k.Default
		if k.Required {
			fallback = "(required)"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", k.Name, k.Type, fallback, k.Help)
	}
	return table.Flush()
}
