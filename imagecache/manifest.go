// SPDX-License-Identifier: MIT

package imagecache

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// ManifestSchema is the version of image.json that this program reads.
const ManifestSchema = 1

const maxManifestBytes = 64 << 10

// Manifest is image.json: what an image is.
type Manifest struct {
	Schema int `json:"schema"`
	// Name is the image's name and that of its folder.
	Name string `json:"name"`
	// GuestOS is "linux" or "darwin".
	GuestOS     string `json:"guest_os"`
	Description string `json:"description,omitempty"`
}

// ParseManifest reads an image.json: known schema, no unknown key, nothing after it, valid.
func ParseManifest(b []byte) (Manifest, error) {
	if len(b) > maxManifestBytes {
		return Manifest{}, fmt.Errorf("%s has more than %d bytes", FileManifest, maxManifestBytes)
	}
	var head struct {
		Schema int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", FileManifest, short{err})
	}
	if head.Schema != ManifestSchema {
		return Manifest{}, fmt.Errorf("%s has schema %d and this program reads schema %d", FileManifest, head.Schema, ManifestSchema)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", FileManifest, short{err})
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Manifest{}, fmt.Errorf("%s: something follows the manifest", FileManifest)
	}
	if err := m.validate(); err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", FileManifest, short{err})
	}
	return m, nil
}

// short is an error that may quote the manifest at any length, cut to what a log can take.
type short struct{ error }

func (s short) Error() string {
	text := s.error.Error()
	if len(text) > 1<<10 {
		text = strings.ToValidUTF8(text[:1<<10], "")
	}
	return text
}

func (s short) Unwrap() error { return s.error }

func (m Manifest) validate() error {
	var errs []error
	if err := ValidateName(m.Name); err != nil {
		errs = append(errs, err)
	}
	if m.GuestOS != "linux" && m.GuestOS != "darwin" {
		errs = append(errs, fmt.Errorf("guest_os is %.40q: give linux or darwin", m.GuestOS))
	}
	if len(m.Description) > 4<<10 || !utf8.ValidString(m.Description) {
		errs = append(errs, errors.New("description is longer than 4096 bytes or not UTF-8"))
	}
	return errors.Join(errs...)
}
