// SPDX-License-Identifier: MIT

package docs_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestEveryPackageLooksForLeaks holds the tests of both modules to internal/leakcheck,
// and to the folder that it gives them.
func TestEveryPackageLooksForLeaks(t *testing.T) {
	checked := map[string]bool{}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		dir := filepath.Dir(path)
		checked[dir] = checked[dir] || strings.Contains(string(text), "leakcheck.Main(")
		if strings.Contains(string(text), `MkdirTemp("/`+`tmp"`) {
			t.Errorf(`%s makes a folder where nobody looks for it: leave the first argument of MkdirTemp empty`, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range checked {
		if !ok {
			t.Errorf("%s has tests without a TestMain that goes through leakcheck.Main", dir)
		}
	}
}

func TestOnlyTestsLookForLeaks(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "./cmd/...")
	cmd.Dir = ".."
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, foreign := range []string{"internal/leakcheck", "go.uber.org/goleak"} {
		if strings.Contains(string(out), foreign) {
			t.Errorf("a program is built with %s", foreign)
		}
	}
}

// TestNoTestIsTriedAgain: one that passes on a second try has failed.
func TestNoTestIsTriedAgain(t *testing.T) {
	for _, path := range []string{"../Makefile", "../.ci/run"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"gotestsum", "rerun", "retry", "retries", "flaky", "|| $(GO) test"} {
			if strings.Contains(strings.ToLower(string(text)), strings.ToLower(word)) {
				t.Errorf("%s speaks of %q", path, word)
			}
		}
	}
}
