// SPDX-License-Identifier: MIT

package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/goccy/go-yaml"

	"github.com/minifleet/minifleet/secret"
)

// maxBytes bounds a configuration file and a file that holds one secret.
const maxBytes = 1 << 20

// Validator is a configuration that can say what is wrong with itself. Load asks
// it last.
type Validator interface{ Validate() error }

// Load reads the file at path into a T that starts with its defaults; then
// variables of the environment win over it: envPrefix, an underscore and the key
// in capitals, sections joined by underscores. An empty path reads no file. A
// secret.Text field "x" beside a string field "x_file" is read from that file,
// relative to the configuration's folder.
func Load[T any](path, envPrefix string, getenv func(string) string) (T, error) {
	var cfg T
	root := reflect.ValueOf(&cfg).Elem()
	if err := setDefaults(root, false); err != nil {
		return cfg, err
	}
	dir := "."
	if path != "" {
		if err := readFile(path, &cfg); err != nil {
			return cfg, err
		}
		dir = filepath.Dir(path)
	}
	err := errors.Join(
		fromEnvironment(root, envPrefix, getenv),
		secretsFromFiles(root, "", dir),
		missing(root, "", envPrefix),
		negative(root, ""),
	)
	if err == nil {
		if v, ok := any(&cfg).(Validator); ok {
			err = v.Validate()
		}
	}
	if err != nil && path != "" {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return cfg, err
}

func readFile[T any](path string, into *T) error {
	text, err := readAtMost(path)
	if err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	if err := decode(text, into); err != nil {
		return fmt.Errorf("%s:%w", path, err)
	}
	// Elements of lists did not exist when defaults were set.
	return setDefaults(reflect.ValueOf(into).Elem(), true)
}

func decode[T any](text []byte, into *T) (err error) {
	defer func() {
		if recover() != nil { // the YAML library's way with some documents
			err = errors.New(" this YAML cannot be read: look for anchors, aliases and tags, and write the values out")
		}
	}()
	decoder := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	switch err := decoder.Decode(into); {
	case errors.Is(err, io.EOF): // an empty file: defaults and environment only
		return nil
	case err != nil:
		return explain(text, Describe[T](""), err)
	}
	var more any
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return errors.New(" more than one YAML document: keep the first, remove the others")
	}
	return nil
}

func readAtMost(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err == nil && len(text) > maxBytes {
		err = fmt.Errorf("%s is larger than %d bytes", path, maxBytes)
	}
	return text, err
}

// secretsFromFiles fills each secret.Text "x" whose sibling "x_file" is set.
func secretsFromFiles(v reflect.Value, prefix, dir string) error {
	var errs []error
	byKey := map[string]reflect.Value{}
	for f := range fields(v) {
		byKey[f.key] = f.value
	}
	for f := range fields(v) {
		switch f.kind {
		case kindSection:
			errs = append(errs, secretsFromFiles(f.value, prefix+f.key+".", dir))
		case kindSections:
			for i := range f.value.Len() {
				errs = append(errs, secretsFromFiles(f.value.Index(i), fmt.Sprintf("%s%s[%d].", prefix, f.key, i), dir))
			}
		case kindSecret:
			sibling, ok := byKey[f.key+"_file"]
			if !ok || sibling.Kind() != reflect.String || sibling.String() == "" {
				continue
			}
			text, err := readSecret(f, prefix, sibling.String(), dir)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			f.value.Set(reflect.ValueOf(text))
		}
	}
	return errors.Join(errs...)
}

func readSecret(f field, prefix, path, dir string) (secret.Text, error) {
	if !f.value.Interface().(secret.Text).Empty() {
		return secret.Text{}, fmt.Errorf("%s%s and %s%s_file are both set: keep one", prefix, f.key, prefix, f.key)
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	text, err := readAtMost(path)
	if err != nil {
		return secret.Text{}, fmt.Errorf("%s%s_file: %w", prefix, f.key, err)
	}
	value := strings.TrimSpace(string(text))
	if value == "" {
		return secret.Text{}, fmt.Errorf("%s%s_file: %s is empty", prefix, f.key, path)
	}
	return secret.New(value), nil
}

// missing names every required key that has no value.
func missing(v reflect.Value, prefix, envPrefix string) error {
	var errs []error
	for f := range fields(v) {
		switch {
		case f.kind == kindSection:
			errs = append(errs, missing(f.value, prefix+f.key+".", envPrefix))
		case f.kind == kindSections:
			for i := range f.value.Len() {
				errs = append(errs, missing(f.value.Index(i), fmt.Sprintf("%s%s[%d].", prefix, f.key, i), ""))
			}
		case f.required && f.value.IsZero():
			err := fmt.Errorf("%s%s is missing: set it in the file", prefix, f.key)
			if envPrefix != "" && f.kind != kindOther {
				err = fmt.Errorf("%w or in %s", err, envName(envPrefix, prefix+f.key))
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// negative names every duration below zero: none means anything.
func negative(v reflect.Value, prefix string) error {
	var errs []error
	for f := range fields(v) {
		switch {
		case f.kind == kindSection:
			errs = append(errs, negative(f.value, prefix+f.key+"."))
		case f.kind == kindSections:
			for i := range f.value.Len() {
				errs = append(errs, negative(f.value.Index(i), fmt.Sprintf("%s%s[%d].", prefix, f.key, i)))
			}
		case f.kind == kindDuration && f.value.Int() < 0:
			errs = append(errs, fmt.Errorf("%s%s is %s: a duration must not be negative", prefix, f.key, f.value.Interface()))
		}
	}
	return errors.Join(errs...)
}
