// SPDX-License-Identifier: MIT

package page_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/docs/page"
)

const good = `Prose before.
<!-- table: t -->
| key | default | change it when |
|---|---|---|
| a | 1 | it is dark |
| b \| c |  | it rains |
<!-- end -->
Prose after.
`

func table() page.Table {
	return page.Table{Name: "t", Columns: []string{"key", "default"}, Written: "change it when", Rows: [][]string{{"a", "1"}, {"b | c", ""}}}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "page.md")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestKeep(t *testing.T) {
	for name, tc := range map[string]struct{ from, to, want string }{
		"good":              {"", "", ""},
		"a missing row":     {"| a | 1 | it is dark |\n", "", "lacks this row: | a | 1 | ? |"},
		"a stale row":       {"| a |", "| old | 2 | no more |\n| a |", "does not know: | old | 2 | no more |"},
		"another default":   {"| a | 1 |", "| a | 2 |", "lacks this row: | a | 1 | it is dark |"},
		"an unwritten cell": {"it is dark", "?", "write the last cell of this row: | a | 1 | ? |"},
		"an empty cell":     {"it is dark |", " |", "lacks this row: | a | 1 | ? |"},
		"another order":     {"| a | 1 | it is dark |\n| b \\| c |  | it rains |\n", "| b \\| c |  | it rains |\n| a | 1 | it is dark |\n", "out of order"},
		"no table":          {"<!-- table: t -->", "<!-- table: u -->", "no table between"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("UPDATE_DOCS", "")
			text := strings.Replace(good, tc.from, tc.to, 1)
			path := write(t, text)
			err := table().Keep(path)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if after, _ := os.ReadFile(path); string(after) != text {
				t.Error("the page was changed")
			}
		})
	}
}

// What people wrote stays where the key does; the rest follows the code.
func TestUpdate(t *testing.T) {
	t.Setenv("UPDATE_DOCS", "1")
	path := write(t, good)
	changed := table()
	changed.Rows = [][]string{{"new", "0"}, {"b | c", "7"}}
	if err := changed.Keep(path); err == nil || !strings.Contains(err.Error(), "write the last cell of this row: | new | 0 | ? |") {
		t.Errorf("error %v", err)
	}
	want := strings.Replace(good, "| a | 1 | it is dark |\n| b \\| c |  |", "| new | 0 | ? |\n| b \\| c | 7 |", 1)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(after)); diff != "" {
		t.Error(diff)
	}
}
