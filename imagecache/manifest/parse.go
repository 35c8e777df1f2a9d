// SPDX-License-Identifier: MIT

package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The bounds of a manifest. They keep what one makes a reader do within what a host has to
// spare, and leave room for a disk of 512 GiB at the smallest chunk size.
const (
	MaxBytes  = 32 << 20 // of the manifest itself
	MaxChunks = 1 << 19  // of all its files
	MaxFiles  = 1 << 14

	MinChunkBytes = 1 << 20
	MaxChunkBytes = 16 << 20

	// MaxImageBytes bounds the sum of the files' sizes. With it no sum of sizes overflows.
	MaxImageBytes = MaxChunks * MaxChunkBytes
)

// SchemaError says that a manifest or a tag is of a schema that this program does not read.
type SchemaError struct {
	What string // "manifest" or "tag"
	Have int
}

func (e *SchemaError) Error() string {
	if e.Have > Schema {
		return fmt.Sprintf("the %s has schema %d and this program reads schema %d: upgrade minifleet, or publish the image with the older version", e.What, e.Have, Schema)
	}
	return fmt.Sprintf("the %s has schema %d and this program reads schema %d: publish the image again with this version", e.What, e.Have, Schema)
}

// Parse reads a manifest and checks all that can be known of it without its chunks: a
// caller may make its files in a folder of their own without further ado. One of another
// schema is a *SchemaError.
//
// A manifest has one form only, that of Encode, so that no two programs can take the same
// bytes for different images.
func Parse(b []byte) (*Manifest, error) {
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("the manifest has %d bytes: at most %d are read", len(b), MaxBytes)
	}
	schema, err := schemaOf(b)
	if err != nil {
		return nil, fmt.Errorf("this is no manifest of an image: %w", cut{err})
	}
	if schema != Schema {
		return nil, &SchemaError{What: "manifest", Have: schema}
	}
	// An element of a list takes little room in the text and much in memory: none is
	// made before there are known to be few enough. Each has a comma behind it but the last.
	if n := bytes.Count(b, []byte{','}); n > MaxChunks+8*MaxFiles+maxDescription {
		return nil, fmt.Errorf("the manifest lists more than %d chunks or %d files", MaxChunks, MaxFiles)
	}
	m := &Manifest{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("manifest: %w", cut{err})
	}
	again, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, b) {
		return nil, fmt.Errorf("the manifest is not in the form that the format prescribes, beginning at byte %d: publish the image again", differAt(again, b))
	}
	return m, nil
}

// schemaOf reads the number that every version of the format begins with.
func schemaOf(b []byte) (int, error) {
	dec := json.NewDecoder(bytes.NewReader(b[:min(len(b), 64)]))
	for _, want := range []json.Token{json.Delim('{'), "schema"} {
		if have, err := dec.Token(); err != nil || have != want {
			return 0, errors.Join(errors.New(`{"schema": is not what it begins with`), eofIsNone(err))
		}
	}
	var schema int
	if err := dec.Decode(&schema); err != nil {
		return 0, errors.Join(errors.New("its schema is no number"), eofIsNone(err))
	}
	return schema, nil
}

func eofIsNone(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

func differAt(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// Encode returns the manifest's bytes, whose digest is the image's. What Parse would
// refuse is an error.
func (m *Manifest) Encode() ([]byte, error) {
	if m.Schema != Schema {
		return nil, &SchemaError{What: "manifest", Have: m.Schema}
	}
	if err := m.validate(); err != nil {
		return nil, fmt.Errorf("manifest: %w", cut{err})
	}
	head := *m
	head.Files = []File{}
	var out bytes.Buffer
	out.Grow(m.encodedBytes())
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(head); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	out.Truncate(out.Len() - len("]}\n"))
	b := out.Bytes()
	for i := range m.Files {
		if i > 0 {
			b = append(b, ',')
		}
		b = m.Files[i].append(b)
	}
	b = append(b, "]}"...)
	if len(b) > MaxBytes {
		return nil, fmt.Errorf("the manifest would have %d bytes, and %d are allowed: use larger chunks", len(b), MaxBytes)
	}
	return b, nil
}

// append writes a file as encoding/json would, only faster: there may be very many chunks.
func (f *File) append(b []byte) []byte {
	path := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(f.Path)
	b = fmt.Appendf(b, `{"path":"%s","mode":%d,"size":%d,"chunks":[`, path, f.Mode, f.Size)
	for i, c := range f.Chunks {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '"')
		b = c.append(b)
		b = append(b, '"')
	}
	return append(b, "]}"...)
}

func (m *Manifest) encodedBytes() int {
	n := 4<<10 + len(m.HardwareModel)*4/3 + len(m.Description)
	for i := range m.Files {
		n += len(m.Files[i].Path) + 80 + len(m.Files[i].Chunks)*(hexLength+12)
	}
	return min(n, MaxBytes)
}

// cut is an error that may quote the manifest at any length, cut to what a log can take.
type cut struct{ error }

func (c cut) Error() string {
	text := c.error.Error()
	if len(text) > 1<<10 {
		text = strings.ToValidUTF8(text[:1<<10], "")
	}
	return text
}

func (c cut) Unwrap() error { return c.error }
