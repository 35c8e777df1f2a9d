// SPDX-License-Identifier: MIT

package manifest_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache/manifest"
)

// FuzzParse holds manifests that are taken to their bounds, and to one form.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := manifest.Parse(b)
		if err != nil {
			if m != nil || len(err.Error()) > 2<<10 {
				t.Fatalf("refused with %d bytes, and yet %+v", len(err.Error()), m)
			}
			return
		}
		chunks := 0
		for i, file := range m.Files {
			if !filepath.IsLocal(file.Path) || filepath.Clean(file.Path) != file.Path || strings.ContainsAny(file.Path, "\\\x00") || file.Mode > 0o777 {
				t.Fatalf("the file %q with mode %o got through", file.Path, file.Mode)
			}
			if i > 0 && m.Files[i-1].Path >= file.Path {
				t.Fatalf("%q stands behind %q", file.Path, m.Files[i-1].Path)
			}
			sum := int64(0)
			for n := range file.Chunks {
				size := file.ChunkSize(n, m)
				if size <= 0 || size > manifest.MaxChunkBytes {
					t.Fatalf("a chunk of %d bytes got through", size)
				}
				sum += size
			}
			if sum != file.Size {
				t.Fatalf("the chunks of %q have %d bytes of %d", file.Path, sum, file.Size)
			}
			chunks += len(file.Chunks)
		}
		if chunks > manifest.MaxChunks || m.Bytes() > manifest.MaxImageBytes || len(m.HardwareModel) > 64<<10 {
			t.Fatalf("%d chunks, %d bytes, a model of %d bytes got through", chunks, m.Bytes(), len(m.HardwareModel))
		}
		again, err := m.Encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Fatalf("%q comes back as %q, %v", b, again, err)
		}
	})
}

// FuzzParseReference holds references to names and places that are safe in a path, and to
// coming back as they were.
func FuzzParseReference(f *testing.F) {
	f.Fuzz(func(t *testing.T, s string) {
		r, err := manifest.ParseReference(s)
		if err != nil {
			if r != (manifest.Reference{}) || len(err.Error()) > 4<<10 {
				t.Fatalf("refused with %d bytes, and yet %+v", len(err.Error()), r)
			}
			return
		}
		for _, part := range []string{r.Name, r.Tag} {
			if strings.ContainsAny(part, "/\\\x00") || part != "" && part[0] == '.' {
				t.Fatalf("%+v got through", r)
			}
		}
		if place := strings.TrimPrefix(r.Location, "/"); place != "" && !filepath.IsLocal(place) {
			t.Fatalf("%+v got through", r)
		}
		back, err := manifest.ParseReference(r.String())
		if diff := cmp.Diff(r, back); diff != "" || err != nil {
			t.Fatalf("%s comes back: %v %s", r, err, diff)
		}
		if r.Remote() {
			scheme, location, err := manifest.ParseLocation(r.Scheme + "://" + r.Location)
			if err != nil || scheme != r.Scheme || location != r.Location {
				t.Fatalf("the place of %s comes back as %s, %s, %v", r, scheme, location, err)
			}
		}
	})
}

// FuzzParseTag holds tags to digests that are safe in a name.
func FuzzParseTag(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		digest, err := manifest.ParseTag(b)
		if err != nil {
			if digest != "" || len(err.Error()) > 2<<10 {
				t.Fatalf("refused with %d bytes, and yet %q", len(err.Error()), digest)
			}
			return
		}
		if back, ok := manifest.ParseManifestObject(manifest.ManifestObject(digest)); !ok || back != digest {
			t.Fatalf("%q got through", digest)
		}
		if back, err := manifest.ParseTag(manifest.EncodeTag(digest)); err != nil || back != digest {
			t.Fatalf("%s comes back as %s, %v", digest, back, err)
		}
	})
}

// FuzzDecompress holds what is decoded to the size and the sum that were asked for.
func FuzzDecompress(f *testing.F) {
	f.Fuzz(func(t *testing.T, stored []byte, size int64, content []byte) {
		if size > mib {
			size %= mib // enough, and quick
		}
		want := manifest.SumOf(content)
		got, err := manifest.Decompress(stored, size, want)
		if err == nil && (int64(len(got)) != size || manifest.SumOf(got) != want) {
			t.Fatalf("%d bytes of %d got through", len(got), size)
		}
		if err != nil && got != nil {
			t.Fatalf("%v, and yet %d bytes", err, len(got))
		}
		if len(content) == 0 {
			return
		}
		back, err := manifest.Decompress(manifest.Compress(nil, content), int64(len(content)), want)
		if err != nil || !bytes.Equal(back, content) {
			t.Fatalf("%d bytes come back as %d, %v", len(content), len(back), err)
		}
	})
}
