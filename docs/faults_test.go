// SPDX-License-Identifier: MIT

package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Every test that the page on GitHub's faults names is there, and each fault happens to the real
// programs.
func TestFaultsPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("github-faults.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "<!-- faults -->")
	table, _, ok := strings.Cut(rest, "<!-- end -->")
	if !ok {
		t.Fatal("github-faults.md has no table of faults")
	}
	tests := map[string]string{} // the source of a package's tests, by folder
	named := regexp.MustCompile("`([a-z0-9_/]+)\\.(Test[A-Za-z0-9]+)`")
	for _, row := range strings.Split(strings.TrimSpace(table), "\n")[2:] {
		cells := strings.Split(strings.Trim(row, "|"), "|")
		if len(cells) != 4 {
			t.Errorf("%d cells, want 4: %s", len(cells), row)
			continue
		}
		found := named.FindAllStringSubmatch(cells[3], -1)
		if len(found) == 0 {
			t.Errorf("no test: %s", row)
		}
		if !strings.Contains(cells[3], "`e2e/site_test.Test") {
			t.Errorf("not with the real programs: %s", row)
		}
		for _, m := range found {
			if _, known := tests[m[1]]; !known {
				tests[m[1]] = sources(t, filepath.Join("..", m[1]))
			}
			if !strings.Contains(tests[m[1]], "\nfunc "+m[2]+"(") {
				t.Errorf("%s has no %s", m[1], m[2])
			}
		}
	}
}

// sources joins the tests of a folder.
func sources(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all.Write(b)
	}
	return all.String()
}
