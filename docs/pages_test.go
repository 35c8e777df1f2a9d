// SPDX-License-Identifier: MIT

package docs_test

import (
	"reflect"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/docs/page"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/metrics"
)

// TestImagePage holds docs/configuration.md to image.json.
func TestImagePage(t *testing.T) {
	table := page.Table{Name: "image.json", Columns: []string{"key", "type", "required"}, Written: "meaning"}
	for f := range reflect.TypeFor[layout.Image]().Fields() {
		key, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		required := "yes"
		if options == "omitempty" {
			required = "no"
		}
		table.Rows = append(table.Rows, []string{"`" + key + "`", typeName(f.Type), required})
	}
	if err := table.Keep("configuration.md"); err != nil {
		t.Error(err)
	}
}

// TestMetricsPage holds docs/operations.md to the metrics of the controller.
func TestMetricsPage(t *testing.T) {
	table := page.Table{Name: "metrics", Columns: []string{"metric", "kind", "labels"}, Written: "meaning"}
	for _, m := range metrics.List() {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		table.Rows = append(table.Rows, []string{"`" + m.Name + "`", m.Kind, labels})
	}
	if err := table.Keep("operations.md"); err != nil {
		t.Error(err)
	}
}

// typeName is what JSON has for a Go type.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[*manifest.Display]():
		return "object"
	case reflect.TypeFor[[]byte]():
		return "base64"
	}
	return t.String()
}
