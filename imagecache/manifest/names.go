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

// The folders of a location. Images of one location share its chunks.
const (
	DirChunks    = "chunks/"
	DirManifests = "manifests/"
	DirTags      = "tags/"

	endChunk = ".zst"
	endJSON  = ".json"
)

// ChunkObject is the name of the object that holds a chunk. The first two digits keep
// folders small where a location is one.
func ChunkObject(s Sum) string {
	hex := s.String()
	return DirChunks + hex[:2] + "/" + hex + endChunk
}

// ParseChunkObject returns the sum of the chunk that an object holds by its name.
func ParseChunkObject(object string) (Sum, bool) {
	hex := strings.TrimSuffix(object[strings.LastIndexByte(object, '/')+1:], endChunk)
	s, err := ParseSum(hex)
	return s, err == nil && ChunkObject(s) == object
}

// ManifestObject is the name of the object that holds the manifest of a valid digest.
func ManifestObject(digest string) string {
	return DirManifests + strings.TrimPrefix(digest, digestPrefix) + endJSON
}

// ParseManifestObject returns the digest of the manifest that an object holds by its name.
func ParseManifestObject(object string) (digest string, ok bool) {
	digest = digestPrefix + strings.TrimSuffix(strings.TrimPrefix(object, DirManifests), endJSON)
	return digest, ValidDigest(digest) && ManifestObject(digest) == object
}

// TagObject is the name of the object that holds a tag of an image, both valid.
func TagObject(name, tag string) string { return DirTags + name + "/" + tag + endJSON }

// ParseTagObject returns the image's name and the tag that an object holds by its name.
func ParseTagObject(object string) (name, tag string, ok bool) {
	name, tag, _ = strings.Cut(strings.TrimSuffix(strings.TrimPrefix(object, DirTags), endJSON), "/")
	return name, tag, ValidateName(name) == nil && ValidTag(tag) && TagObject(name, tag) == object
}

// MaxTagBytes bounds a tag's object.
const MaxTagBytes = 4 << 10

type tagFile struct {
	Schema   int    `json:"schema"`
	Manifest string `json:"manifest"`
}

// EncodeTag returns what a tag's object holds: the digest of a manifest.
func EncodeTag(digest string) []byte {
	return fmt.Appendf(nil, `{"schema":%d,"manifest":%q}`, Schema, digest)
}

// ParseTag reads what EncodeTag writes and returns the digest. A tag of another schema is
// a *SchemaError.
func ParseTag(b []byte) (digest string, err error) {
	if len(b) > MaxTagBytes {
		return "", fmt.Errorf("the tag has %d bytes: at most %d are read", len(b), MaxTagBytes)
	}
	var head struct {
		Schema *int `json:"schema"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return "", fmt.Errorf("this is no tag of an image: %w", cut{err})
	}
	if head.Schema == nil {
		return "", errors.New("this is no tag of an image: it has no schema")
	}
	if *head.Schema != Schema {
		return "", &SchemaError{What: "tag", Have: *head.Schema}
	}
	var t tagFile
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return "", fmt.Errorf("tag: %w", cut{err})
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("tag: something follows it")
	}
	if !ValidDigest(t.Manifest) {
		return "", fmt.Errorf("tag: the digest %.80q is not %s and 64 of 0-9 and a-f", t.Manifest, digestPrefix)
	}
	return t.Manifest, nil
}
