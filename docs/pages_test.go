// SPDX-License-Identifier: MIT

package docs_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/docs/page"
	"github.com/minifleet/minifleet/imagecache"
)

// TestImagePage holds docs/configuration.md to the manifest of an image.
func TestImagePage(t *testing.T) {
	table := page.Table{Name: "image.json", Columns: []string{"key", "type", "required"}, Written: "meaning"}
	for f := range reflect.TypeFor[imagecache.Manifest]().Fields() {
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		required := "yes"
		if options == "omitempty" {
			required = "no"
		}
		table.Rows = append(table.Rows, []string{"`" + key + "`", f.Type.String(), required})
	}
	if err := table.Keep("configuration.md"); err != nil {
		t.Error(err)
	}
}
