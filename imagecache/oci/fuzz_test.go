// SPDX-License-Identifier: MIT

package oci_test

import (
	"testing"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/oci"
)

// FuzzParseManifest holds what is read of a registry's manifest to bounded sizes.
func FuzzParseManifest(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		layers, bytes, err := oci.ParseManifest(b)
		if err != nil {
			if len(err.Error()) > 2<<10 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		if layers < 1 || bytes < int64(layers) || bytes > manifest.MaxImageBytes || bytes > manifest.MaxChunks*manifest.ChunkBytes {
			t.Fatalf("%d layers of %d bytes", layers, bytes)
		}
	})
}
