// SPDX-License-Identifier: MIT

// Package config reads the one strict YAML file of a program into a struct whose
// tags name its keys, defaults and meaning. It owns the order in which values win
// (default, file, environment), secrets by file reference, errors with line and
// column, and the text that --help shows of all keys. What the keys mean is the
// program's own matter.
//
// The tags of a field: yaml:"key" (required on every field), default:"value",
// help:"one line", required:"true". Fields are strings, booleans, integers,
// floats, time.Duration, secret.Text, []string, structs (a nested section),
// slices of structs, and maps.
package config
