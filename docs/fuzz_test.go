// SPDX-License-Identifier: MIT

package docs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var fuzzTarget = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(f \*testing\.F\)`)

// TestEveryFuzzTargetHasACorpus looks for each target's committed inputs, which run with
// every test, and for inputs whose target is gone.
func TestEveryFuzzTargetHasACorpus(t *testing.T) {
	const fewest = 5
	targets, corpora := map[string]bool{}, map[string]int{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && filepath.Base(filepath.Dir(path)) == "fuzz":
			entries, err := os.ReadDir(path)
			corpora[path] = len(entries)
			return err
		case !strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range fuzzTarget.FindAllSubmatch(text, -1) {
			targets[filepath.Join(filepath.Dir(path), "testdata", "fuzz", string(m[1]))] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(targets) < 20 {
		t.Fatalf("the test finds %d fuzz targets only", len(targets))
	}
	for dir := range targets {
		if corpora[dir] < fewest {
			t.Errorf("%s has %d inputs: commit at least %d", dir, corpora[dir], fewest)
		}
	}
	for dir := range corpora {
		if !targets[dir] {
			t.Errorf("%s has no fuzz target", dir)
		}
	}
}
