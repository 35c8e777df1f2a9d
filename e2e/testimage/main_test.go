// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/internal/testimage"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// needTools skips where the images cannot be built, and fails there under CI.
func needTools(t *testing.T) {
	t.Helper()
	if err := checkMachine(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// madeBy is the folder of packages that make test-image built from.
func madeBy(t *testing.T) string {
	t.Helper()
	needTools(t)
	return filepath.Join(filepath.Dir(testimage.Need(t).Dir), dirPackages)
}

// buildAgain builds the images out of the packages and programs of make test-image, with
// keys of its own.
func buildAgain(t *testing.T, dir string, keys string) (said string) {
	t.Helper()
	if err := os.Symlink(madeBy(t), filepath.Join(dir, dirPackages)); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(keys, filepath.Join(dir, dirKeys)); err != nil {
		t.Fatal(err)
	}
	return runAgain(t, dir)
}

func runAgain(t *testing.T, dir string) (said string) {
	t.Helper()
	programs := filepath.Join(filepath.Dir(testimage.Need(t).Dir), "guest-programs")
	var stderr bytes.Buffer
	args := []string{"-dir", dir, "-guest", filepath.Join(programs, "minifleet-guest"), "-runner", filepath.Join(programs, "runner")}
	if code := run(t.Context(), args, &stderr, os.Getenv); code != 0 {
		t.Fatalf("exit code %d: %s", code, &stderr)
	}
	return stderr.String()
}

// Equal inputs give equal images, byte by byte, which an agent's cache takes; unchanged
// inputs build nothing, and a changed one does.
func TestImagesAreReproducible(t *testing.T) {
	one, two, keys := t.TempDir(), t.TempDir(), t.TempDir()
	buildAgain(t, one, keys)
	buildAgain(t, two, keys)
	compare(t, filepath.Join(one, dirImages), filepath.Join(two, dirImages))
	for _, name := range []string{nameGuest, nameSSH} {
		cache, err := imagecache.Open(imagecache.Config{Dir: filepath.Join(one, dirImages)})
		if err != nil {
			t.Fatal(err)
		}
		image, err := cache.Ensure(t.Context(), name, nil)
		if err != nil {
			t.Fatal(err)
		}
		image.Release()
	}

	if said := runAgain(t, one); !strings.Contains(said, "up to date") {
		t.Errorf("built again without need: %s", said)
	}
	if err := os.Remove(filepath.Join(keys, filePublic)); err != nil { // so it is made anew
		t.Fatal(err)
	}
	if said := runAgain(t, one); strings.Contains(said, "up to date") {
		t.Errorf("not built again with another key: %s", said)
	}
}

func compare(t *testing.T, one, two string) {
	t.Helper()
	if err := command(t.Context(), "diff", "-r", one, two).Run(); err != nil {
		out, _ := command(t.Context(), "diff", "-rq", one, two).CombinedOutput()
		t.Errorf("two builds of the same differ: %v\n%s", err, out)
	}
}

func TestCommandLine(t *testing.T) {
	needTools(t)
	empty := t.TempDir()
	all := []string{"-dir", filepath.Join(empty, "out"), "-guest", "g", "-runner", "r"}
	tests := map[string]struct {
		args []string
		ci   string
		code int
		says string
	}{
		"nothing":             {nil, "", exitUsage, "required"},
		"an unknown flag":     {[]string{"-fast"}, "", exitUsage, "-fast"},
		"too much":            {append(all[:6:6], "more"), "", exitUsage, "nothing else"},
		"no tools":            {all, "", exitMissing, "apt-get install apt dpkg"},
		"no tools, a check":   {[]string{"-check"}, "", exitMissing, "openssh-client qemu-system-x86)"},
		"no tools, optional":  {append([]string{"-optional"}, all...), "", 0, "are skipped"},
		"no tools, and by CI": {append([]string{"-optional"}, all...), "true", exitMissing, "apt-get install apt dpkg"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Setenv("PATH", empty)
			var stderr bytes.Buffer
			code := run(t.Context(), tt.args, &stderr, func(string) string { return tt.ci })
			if code != tt.code || !strings.Contains(stderr.String(), tt.says) {
				t.Errorf("exit code %d and %q; want %d and %q", code, &stderr, tt.code, tt.says)
			}
		})
	}
}
