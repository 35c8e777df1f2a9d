// SPDX-License-Identifier: MIT

package testimage

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// checkout is one in which everything is there, and the PATH that has QEMU.
func checkout(t *testing.T) (dir, path string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range map[string]string{
		"e2e/go.mod":                                  "module e2e\n",
		"e2e/bin/images/testlinux/image.json":         "{}",
		"e2e/bin/images/sshonly/image.json":           "{}",
		"e2e/bin/image-keys/ssh_host_ed25519_key.pub": "ssh-ed25519 AAAA\n",
		"tools/" + QEMU:                               "#!/bin/sh\n",
		"vm/qemu/machine.go":                          "package qemu\n",
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, filepath.Join(dir, "none") + ":" + filepath.Join(dir, "tools")
}

func TestFind(t *testing.T) {
	dir, path := checkout(t)
	got, err := find(filepath.Join(dir, "vm", "qemu"), path)
	if err != nil {
		t.Fatal(err)
	}
	want := Images{
		Dir:     filepath.Join(dir, "e2e/bin/images"),
		QEMU:    filepath.Join(dir, "tools", QEMU),
		Key:     filepath.Join(dir, "e2e/bin/image-keys/id_ed25519"),
		HostKey: "ssh-ed25519 AAAA\n",
	}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if got, want := got.Image(SSH), filepath.Join(dir, "e2e/bin/images/sshonly"); got != want {
		t.Errorf("image in %s, want %s", got, want)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	for missing, want := range map[string]string{
		"e2e/bin/images/testlinux": "make test-image",
		"e2e/bin/images/sshonly":   "make test-image",
		"e2e/bin/image-keys":       "make test-image",
		"tools/" + QEMU:            "apt-get install qemu-system-x86",
		"e2e/go.mod":               "no checkout",
	} {
		t.Run(missing, func(t *testing.T) {
			dir, path := checkout(t)
			if err := os.RemoveAll(filepath.Join(dir, missing)); err != nil {
				t.Fatal(err)
			}
			if _, err := find(dir, path); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v; want one with %q", err, want)
			}
		})
	}
}

// ended records how a test would have ended.
type ended struct{ how string }

func (*ended) Helper()            {}
func (e *ended) Skip(args ...any) { e.how = "skipped" }
func (e *ended) Fatal(...any)     { e.how = "failed" }

func TestWithoutImagesOnlyCIFails(t *testing.T) {
	t.Chdir(t.TempDir())
	for ci, want := range map[string]string{"": "skipped", "true": "failed"} {
		t.Setenv("CI", ci)
		e := &ended{}
		Need(e)
		if e.how != want {
			t.Errorf("with CI=%q the test %s, want %s", ci, e.how, want)
		}
	}
}
