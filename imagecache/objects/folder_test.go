// SPDX-License-Identifier: MIT

package objects_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/objects"
)

func folder(t *testing.T, dir string) objects.Store {
	t.Helper()
	return open(t, objects.Options{Scheme: "file", Location: dir})
}

// TestFolderIsPlain: an object is a file with its content and nothing else, whoever put
// it there; what is no file is no object.
func TestFolderIsPlain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(t, dir)
	put(t, s, "tags/a/b.json", "text")
	if b, err := os.ReadFile(filepath.Join(dir, "tags/a/b.json")); err != nil || string(b) != "text" {
		t.Error(string(b), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tags/a/c.json"), []byte("by hand"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "tags/a/d.json")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "tags/a/e.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := s.Stat(t.Context(), "tags/a/c.json")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Touch(t.Context(), "tags/a/c.json", objects.Condition{Generation: a.Generation, Metageneration: a.Metageneration}); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"tags/a/d.json", "tags/a/e.json"} {
		if _, err := s.Stat(t.Context(), name); !errors.Is(err, objects.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := 0
	for a, err := range s.List(t.Context(), "") {
		if err != nil || a.Name != "tags/a/b.json" && a.Name != "tags/a/c.json" {
			t.Errorf("%+v, %v", a, err)
		}
		n++
	}
	if n != 2 {
		t.Errorf("%d are listed", n)
	}
}

// TestFolderVersions: versions survive a restart, and grow whatever the clock says.
func TestFolderVersions(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, folder(t, dir), "a", "1")
	future := time.Now().Add(1000 * time.Hour)
	if err := os.Chtimes(filepath.Join(dir, "a"), future, time.Unix(future.Unix(), 999_999_999)); err != nil {
		t.Fatal(err)
	}
	s := folder(t, dir)
	old, err := s.Stat(t.Context(), "a")
	if err != nil || old.Generation != future.Unix() {
		t.Fatal(old, err)
	}
	touched, err := s.Touch(t.Context(), "a", objects.Condition{})
	if err != nil || touched.Generation != old.Generation+1 { // there is no room for another touch
		t.Errorf("%+v became %+v, %v", old, touched, err)
	}
	over := put(t, s, "a", "2")
	if over.Generation <= touched.Generation {
		t.Errorf("%+v became %+v", touched, over)
	}
	if err := s.Delete(t.Context(), "a", objects.Condition{Generation: over.Generation}); err != nil {
		t.Fatal(err)
	}
	if back := put(t, folder(t, dir), "a", "3"); back.Generation <= over.Generation {
		t.Errorf("%+v came back as %+v", over, back)
	}
}

// TestFolderLeftOver: what a process left that was killed goes, and what another is
// writing stays.
func TestFolderLeftOver(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	put(t, folder(t, dir), "a", "1")
	dead, alive := filepath.Join(dir, ".tmp/dead"), filepath.Join(dir, ".tmp/alive")
	for _, path := range []string{dead, alive} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(alive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	put(t, folder(t, dir), "a", "2")
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(alive); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, ".tmp"))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
}

// TestFolderLocked: another process's turn is waited for, within the context.
func TestFolderLocked(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := folder(t, dir)
	put(t, s, "a", "1")
	other, err := os.Open(filepath.Join(dir, ".lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Delete(ctx, "a", objects.Condition{}); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), ".lock") {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a", objects.Condition{}); err != nil {
		t.Error(err)
	}
}
