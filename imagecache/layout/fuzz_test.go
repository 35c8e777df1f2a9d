// SPDX-License-Identifier: MIT

package layout_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// FuzzParseImage holds an image.json to names that are safe as a folder's, and to coming
// back as it was.
func FuzzParseImage(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := layout.ParseImage(b)
		if err != nil {
			if !cmp.Equal(m, layout.Image{}) || len(err.Error()) > 2<<10 {
				t.Fatalf("refused with %d bytes, and yet %+v", len(err.Error()), m)
			}
			return
		}
		if m.Name == "" || len(m.Name) > 100 || strings.ContainsAny(m.Name, "/\x00") || m.Name[0] == '.' || len(b) > 128<<10 {
			t.Fatalf("%+v got through", m)
		}
		again, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := layout.ParseImage(again); err != nil || !cmp.Equal(back, m) {
			t.Fatalf("%+v comes back as %+v, %v", m, back, err)
		}
	})
}

// FuzzParseTart holds what is made of tart's configuration to what image.json may say.
func FuzzParseTart(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := layout.ParseTart(b)
		if err != nil {
			if !cmp.Equal(m, manifest.Manifest{}) || len(err.Error()) > 2<<10 {
				t.Fatalf("refused with %d bytes, and yet %+v", len(err.Error()), m)
			}
			return
		}
		again, err := json.Marshal(layout.Image{
			Schema: 1, Name: "tart", GuestOS: m.GuestOS, Arch: m.Arch, MinCPUs: m.MinCPUs, MinMemoryMiB: m.MinMemoryMiB,
			Display: m.Display, HardwareModel: m.HardwareModel,
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := layout.ParseImage(again); err != nil || (m.GuestOS == "darwin") != (m.HardwareModel != nil) {
			t.Fatalf("%+v got through: %v", m, err)
		}
	})
}

// FuzzParseShoesModel holds what is taken from shoes-vz to a property list of bounded size.
func FuzzParseShoesModel(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		model, err := layout.ParseShoesModel(b)
		if err == nil && (!strings.HasPrefix(string(model), "bplist00") || len(model) > 64<<10) || err != nil && (model != nil || len(err.Error()) > 2<<10) {
			t.Fatalf("%q, %v", model, err)
		}
	})
}
