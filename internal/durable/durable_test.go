// SPDX-License-Identifier: MIT

package durable_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/internal/durable"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func wantFile(t *testing.T, path, content string, mode fs.FileMode) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil || string(b) != content {
		t.Errorf("%s: %q, %v", path, b, err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != mode {
		t.Errorf("%s: %v, %v, want %v", path, info.Mode(), err, mode)
	}
}

func TestWriteFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	for _, content := range []string{"old", "newer", ""} {
		if err := durable.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, content, 0o644)
	}
	next, err := durable.Aside(path, []byte("next"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "", 0o644)
	wantFile(t, next, "next", 0o600)
	if filepath.Dir(next) != dir || !strings.HasPrefix(filepath.Base(next), durable.Prefix) {
		t.Errorf("it is written into %s", next)
	}
	if err := durable.Place(next, path); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "next", 0o600)
	if n := names(t, dir); n != "file" {
		t.Errorf("there are %s", n)
	}
}

// TestNothingIsLeft has writing fail: the old file stays, and no other does.
func TestNothingIsLeft(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "folder", "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(filepath.Join(dir, "folder"), []byte("content"), 0o644); err == nil {
		t.Error("a file in place of a folder")
	}
	if err := durable.Create(filepath.Join(dir, "folder"), []byte("content"), 0o644); err == nil {
		t.Error("a file made in place of a folder")
	}
	if err := durable.WriteFile(filepath.Join(dir, "missing", "file"), nil, 0o644); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder that is not there: %v", err)
	}
	if err := durable.Sync(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	if n := names(t, dir); n != "folder" {
		t.Errorf("there are %s", n)
	}
}

// TestCreate finds a link where it is to make a file.
func TestCreate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, other := filepath.Join(dir, "file"), filepath.Join(dir, "other")
	if err := errors.Join(os.WriteFile(other, []byte("other"), 0o600), os.Symlink(other, path)); err != nil {
		t.Fatal(err)
	}
	for _, content := range []string{"one", "two"} {
		if err := durable.Create(path, []byte(content), 0o640); err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, content, 0o640)
	}
	wantFile(t, other, "other", 0o600)
	if err := durable.Rename(path, other); err != nil {
		t.Fatal(err)
	}
	wantFile(t, other, "two", 0o640)
}
