// SPDX-License-Identifier: MIT

// Package plist reads property lists in their XML form (plist(5)): those that this project
// writes for launchd, to check them where there is no plutil, and those that macOS's own
// tools print.
package plist

import (
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Dict is a dictionary.
type Dict = map[string]any

// Limits of what is read: property lists for people are small.
const (
	maxDepth = 64
	maxBytes = 1 << 20
)

// Parse reads one property list. A value is a Dict, []any, string, bool, int64, float64,
// time.Time or []byte. A key that comes twice is an error, for readers differ on what it means.
func Parse(b []byte) (any, error) {
	v, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("property list: %w", err)
	}
	return v, nil
}

func parse(b []byte) (any, error) {
	if len(b) > maxBytes {
		return nil, fmt.Errorf("it has %d bytes, at most %d are read", len(b), maxBytes)
	}
	r := reader{xml.NewDecoder(strings.NewReader(string(b)))}
	root, err := r.start()
	if err != nil {
		return nil, err
	}
	if root == nil || root.Name.Local != "plist" {
		return nil, errors.New("it does not begin with <plist>")
	}
	first, err := r.start()
	if err != nil {
		return nil, err
	}
	if first == nil {
		return nil, errors.New("it is empty")
	}
	v, err := r.value(*first, 0)
	if err != nil {
		return nil, err
	}
	if more, err := r.start(); err != nil || more != nil {
		return nil, errors.Join(errors.New("it has more than one value"), err)
	}
	if more, err := r.start(); !errors.Is(err, io.ErrUnexpectedEOF) || more != nil {
		return nil, errors.New("something follows </plist>")
	}
	return v, nil
}

type reader struct{ *xml.Decoder }

// start returns the next element, or nil where the one around it ends.
func (r reader) start() (*xml.StartElement, error) {
	for {
		t, err := r.Token()
		if errors.Is(err, io.EOF) {
			return nil, io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			return &t, nil
		case xml.EndElement:
			return nil, nil
		case xml.CharData:
			if text := strings.TrimSpace(string(t)); text != "" {
				return nil, fmt.Errorf("the text %.40q stands outside of a value", text)
			}
		}
	}
}

func (r reader) value(e xml.StartElement, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxDepth)
	}
	switch e.Name.Local {
	case "dict":
		return r.dict(depth)
	case "array":
		return r.array(depth)
	}
	text, err := r.text(e)
	if err != nil {
		return nil, err
	}
	var v any
	switch e.Name.Local {
	case "true", "false":
		if text != "" {
			return nil, fmt.Errorf("<%s> holds text", e.Name.Local)
		}
		return e.Name.Local == "true", nil
	case "string":
		return text, nil
	case "integer":
		v, err = strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	case "real":
		v, err = strconv.ParseFloat(strings.TrimSpace(text), 64)
	case "date":
		v, err = time.Parse(time.RFC3339, strings.TrimSpace(text))
	case "data":
		v, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	default:
		return nil, fmt.Errorf("<%.40s> is no value", e.Name.Local)
	}
	if err != nil {
		return nil, fmt.Errorf("<%s>: %w", e.Name.Local, err)
	}
	return v, nil
}

func (r reader) dict(depth int) (Dict, error) {
	d := Dict{}
	for {
		e, err := r.start()
		if err != nil || e == nil {
			return d, err
		}
		if e.Name.Local != "key" {
			return nil, fmt.Errorf("<%.40s> stands where a key belongs", e.Name.Local)
		}
		key, err := r.text(*e)
		if err != nil {
			return nil, err
		}
		if _, twice := d[key]; twice {
			return nil, fmt.Errorf("the key %.60q comes twice", key)
		}
		if e, err = r.start(); err != nil {
			return nil, err
		}
		if e == nil {
			return nil, fmt.Errorf("the key %.60q has no value", key)
		}
		if d[key], err = r.value(*e, depth+1); err != nil {
			return nil, err
		}
	}
}

func (r reader) array(depth int) ([]any, error) {
	list := []any{}
	for {
		e, err := r.start()
		if err != nil || e == nil {
			return list, err
		}
		v, err := r.value(*e, depth+1)
		if err != nil {
			return nil, err
		}
		list = append(list, v)
	}
}

// text returns what stands in an element that holds no others.
func (r reader) text(e xml.StartElement) (string, error) {
	var b strings.Builder
	for {
		t, err := r.Token()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return "", err
		}
		switch t := t.(type) {
		case xml.CharData:
			b.Write(t)
		case xml.EndElement:
			return b.String(), nil
		case xml.StartElement:
			return "", fmt.Errorf("<%.40s> stands inside of <%.40s>", t.Name.Local, e.Name.Local)
		}
	}
}
