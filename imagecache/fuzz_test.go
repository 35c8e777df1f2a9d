// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
)

// FuzzParseManifest holds an image.json to names that are safe as a folder's, and to
// coming back as it was.
func FuzzParseManifest(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := imagecache.ParseManifest(b)
		if err != nil {
			if m != (imagecache.Manifest{}) || len(err.Error()) > 2<<10 {
				t.Fatalf("refused with %d bytes, and yet %+v", len(err.Error()), m)
			}
			return
		}
		if imagecache.ValidateName(m.Name) != nil || strings.ContainsAny(m.Name, "/\x00") || m.Name[0] == '.' || len(b) > 64<<10 {
			t.Fatalf("%+v got through", m)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := imagecache.ParseManifest(again); err != nil || back != m {
			t.Fatalf("%+v comes back as %+v, %v", m, back, err)
		}
	})
}
