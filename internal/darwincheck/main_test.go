// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const repository = "../.."

// checkRun runs the program on the repository.
func checkRun(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(t.Context(), append([]string{"-C", repository}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

// overlay returns an -overlay that puts the texts in the place of the repository's files.
func overlay(t *testing.T, texts map[string]string) string {
	t.Helper()
	dir, replace := t.TempDir(), map[string]string{}
	for file, text := range texts {
		where, err := filepath.Abs(filepath.Join(repository, file))
		if err != nil {
			t.Fatal(err)
		}
		replace[where] = filepath.Join(dir, filepath.Base(file))
		if err := os.WriteFile(replace[where], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPlantedMistakesAreFound makes mistakes in the repository's own Mac code, as its
// writer would, above all in what calls Virtualization.framework. Each must be found where
// it was made, and nothing without one.
func TestPlantedMistakesAreFound(t *testing.T) {
	t.Parallel()
	planted := func(body string) string {
		return "//go:build arm64 && cgo\n\npackage vz\n\nimport \"github.com/Code-Hex/vz/v3\"\n\nfunc planted() {\n\t" + body + "\n}\n"
	}
	right := map[string]string{"vm/vz/planted_darwin.go": planted("_, _ = vz.NewMacOSBootLoader()")}
	if code, out, errs := checkRun(t, "-overlay", overlay(t, right), "./vm", "./vm/vz"); code != exitRight || out != "" {
		t.Fatalf("without a mistake: exit %d\n%s%s", code, out, errs)
	}
	texts := map[string]string{"vm/vz/planted_darwin_test.go": planted("_, _ = vz.NewVirtualMachine(true)")}
	wants := map[string]string{"vm/vz/planted_darwin_test.go": "cannot use true"}
	for _, m := range []struct{ file, from, to, want string }{
		{"vm/vz/apple_darwin.go", "m.vm.Stop()", "m.vm.RequestStop()", "too many arguments in call to plain"},
		{"vm/vz/configure_darwin.go", "DiskImageCachingModeAutomatic, sync)", "DiskImageSynchronizationModeNone, sync)", "cannot use vz.DiskImageSynchronizationModeNone"},
		{"vm/clone_darwin.go", "unix.AT_FDCWD, dst, 0)", "unix.AT_FDCWD, dst)", "not enough arguments"},
		{"vm/identity_darwin.go", "import (", "import (\n\"net\"", `"net" imported and not used`},
		{"vm/orphan_darwin.go", "func ", "func (", "expected"},
	} {
		b, err := os.ReadFile(filepath.Join(repository, m.file))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b), m.from) {
			t.Fatalf("%s has no %q to make a mistake of", m.file, m.from)
		}
		texts[m.file], wants[m.file] = strings.Replace(string(b), m.from, m.to, 1), m.want
	}
	code, out, errs := checkRun(t, "-overlay", overlay(t, texts), "./vm", "./vm/vz")
	if code != exitWrong {
		t.Errorf("with mistakes: exit %d\n%s%s", code, out, errs)
	}
	for file, want := range wants {
		found := false
		for line := range strings.Lines(out) {
			found = found || strings.HasPrefix(line, file+":") && strings.Contains(line, want)
		}
		if !found {
			t.Errorf("no line on %s with %q in\n%s", file, want, out)
		}
	}
}

func TestCannotTell(t *testing.T) {
	t.Parallel()
	broken := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := overlay(t, map[string]string{"secret/planted_darwin.go": "package secret\n\nimport _ \"no.such/module\"\n"})
	for name, args := range map[string][]string{
		"no such module":   {"-overlay", missing, "./secret"},
		"no package":       {"./no/such/..."},
		"unknown flag":     {"-fast"},
		"no overlay":       {"-overlay", "/no/such/overlay.json", "./vm"},
		"broken overlay":   {"-overlay", broken, "./vm"},
		"folder not there": {"-C", "/no/such/folder"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if code, out, errs := checkRun(t, args...); code != exitFailed || errs == "" {
				t.Errorf("exit %d, want %d and a word on it\n%s%s", code, exitFailed, out, errs)
			}
		})
	}
}
