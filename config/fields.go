// SPDX-License-Identifier: MIT

package config

import (
	"errors"
	"fmt"
	"iter"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// kind is what a field is to this package.
type kind string

const (
	kindString   kind = "string"
	kindBool     kind = "true or false"
	kindInt      kind = "integer"
	kindFloat    kind = "number"
	kindDuration kind = "duration"
	kindSecret   kind = "secret"
	kindStrings  kind = "list of strings"
	kindSection  kind = "section"
	kindSections kind = "list of sections"
	kindOther    kind = "map"
)

// scalar reports whether values of the kind can come from one line of text.
func (k kind) scalar() bool {
	return k != kindSection && k != kindSections && k != kindOther
}

// field is one key of a configuration struct.
type field struct {
	key, fallback, help string
	required            bool
	kind                kind
	value               reflect.Value
}

// fields yields the exported fields of a struct that have a key.
func fields(v reflect.Value) iter.Seq[field] {
	return func(yield func(field) bool) {
		for i := range v.NumField() {
			sf := v.Type().Field(i)
			key, _, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
			if !sf.IsExported() || key == "" || key == "-" {
				continue
			}
			f := field{
				key: key, fallback: sf.Tag.Get("default"), help: sf.Tag.Get("help"),
				required: sf.Tag.Get("required") == "true", kind: kindOf(sf.Type), value: v.Field(i),
			}
			if !yield(f) {
				return
			}
		}
	}
}

func kindOf(t reflect.Type) kind {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return kindDuration
	case reflect.TypeFor[secret.Text]():
		return kindSecret
	}
	switch t.Kind() {
	case reflect.String:
		return kindString
	case reflect.Bool:
		return kindBool
	case reflect.Int, reflect.Int64:
		return kindInt
	case reflect.Float64:
		return kindFloat
	case reflect.Struct:
		return kindSection
	case reflect.Slice:
		switch t.Elem().Kind() {
		case reflect.Struct:
			return kindSections
		case reflect.String:
			return kindStrings
		}
	}
	return kindOther
}

// setText gives a scalar field the value that a line of text stands for.
func (f field) setText(text string) error {
	switch f.kind {
	case kindString:
		f.value.SetString(text)
	case kindBool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is not true or false", text)
		}
		f.value.SetBool(b)
	case kindInt:
		n, err := strconv.ParseInt(text, 10, f.value.Type().Bits())
		if err != nil {
			return fmt.Errorf("%q is not an integer", text)
		}
		f.value.SetInt(n)
	case kindFloat:
		n, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return fmt.Errorf("%q is not a number", text)
		}
		f.value.SetFloat(n)
	case kindDuration:
		d, err := parseDuration(text)
		if err != nil {
			return err
		}
		f.value.SetInt(int64(d))
	case kindSecret:
		f.value.Set(reflect.ValueOf(secret.New(text)))
	case kindStrings:
		list := strings.Split(text, ",")
		out := reflect.MakeSlice(f.value.Type(), 0, len(list))
		for _, item := range list {
			if item = strings.TrimSpace(item); item != "" {
				out = reflect.Append(out, reflect.ValueOf(item).Convert(f.value.Type().Elem()))
			}
		}
		f.value.Set(out)
	default:
		return fmt.Errorf("a %s cannot be given as text", f.kind)
	}
	return nil
}

func parseDuration(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write a number with a unit, such as 90s, 5m or 2h", text)
	}
	return d, nil
}

// setDefaults gives fields their defaults: all of them before the file is read,
// and those of list elements, which exist only after it, where they are zero.
func setDefaults(v reflect.Value, listsOnly bool) error {
	var errs []error
	for f := range fields(v) {
		switch {
		case f.kind == kindSection:
			errs = append(errs, setDefaults(f.value, listsOnly))
		case f.kind == kindSections:
			for i := range f.value.Len() {
				errs = append(errs, setDefaults(f.value.Index(i), false))
			}
		case listsOnly || f.fallback == "" || !f.value.IsZero():
		default:
			if err := f.setText(f.fallback); err != nil {
				errs = append(errs, fmt.Errorf("default of %s: %w", f.key, err))
			}
		}
	}
	return errors.Join(errs...)
}

// fromEnvironment lets variables win over what the file says.
func fromEnvironment(v reflect.Value, prefix string, getenv func(string) string) error {
	var errs []error
	for f := range fields(v) {
		name := envName(prefix, f.key)
		switch {
		case f.kind == kindSection:
			errs = append(errs, fromEnvironment(f.value, name, getenv))
		case f.kind.scalar():
			if text := getenv(name); text != "" {
				if err := f.setText(text); err != nil {
					errs = append(errs, fmt.Errorf("environment variable %s: %w", name, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}

func envName(prefix, key string) string {
	return prefix + "_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
}
