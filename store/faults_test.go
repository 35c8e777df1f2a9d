// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// refused opens a database that must not open, and returns the error.
func refused(t *testing.T, path string, words ...string) error {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err == nil {
		t.Fatal(errors.Join(errors.New("opened"), s.Close()))
	}
	for _, word := range append(words, path) {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error lacks %q: %v", word, err)
		}
	}
	return err
}

// laidDown makes a database with a job in it, closes it, and returns its path and site.
func laidDown(t *testing.T) (path, site string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "x.db")
	s, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		if err := s.Learn(t.Context(), *news(fleet.JobID(i+1), fleet.ToldQueued, "")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, s.Site()
}

func TestOneControllerADatabase(t *testing.T) {
	t.Parallel()
	path, site := laidDown(t)
	link := filepath.Join(t.TempDir(), "link.db")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	first, err := store.Open(t.Context(), store.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	pid := fmt.Sprintf("process %d", os.Getpid())
	refused(t, path, pid, ".lock", "stop that one first")
	refused(t, link, pid)
	if err := first.Ping(t.Context()); err != nil {
		t.Errorf("the first is disturbed: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openAt(t, link, time.Now); again.Site() != site {
		t.Errorf("site %s, before %s", again.Site(), site)
	}
}

// The lock's text is for people: nothing depends on it but the look for a lost database.
func TestLockFileOfGarbage(t *testing.T) {
	t.Parallel()
	path, site := laidDown(t)
	for name, text := range map[string]string{"empty": "", "cut": `{"pid":1`, "binary": "\x00\xff", "long": strings.Repeat("x", 9000)} {
		if err := os.WriteFile(path+".lock", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(t.Context(), store.Config{Path: path})
		if err != nil || s.Site() != site {
			t.Fatalf("%s: %v", name, err)
		}
		var o struct {
			PID  int    `json:"pid"`
			Site string `json:"site"`
		}
		raw, err := os.ReadFile(path + ".lock")
		if err = errors.Join(err, json.Unmarshal(raw, &o)); err != nil || o.PID != os.Getpid() || o.Site != site {
			t.Errorf("%s: the lock file says %q, %v", name, raw, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// lockedElsewhere has another connection hold a write transaction until the returned
// function is called.
func lockedElsewhere(t *testing.T, path string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if err := errors.Join(tx.Rollback(), db.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestLockedByAnotherProgram(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	s := openAt(t, path, time.Now)
	unlock := lockedElsewhere(t, path)
	defer unlock()

	t.Run("a context ends the wait", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := s.Ping(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's error", err)
		}
	})
	t.Run("a crowd waits no longer than one", func(t *testing.T) {
		const crowd = 50 // one after the other they would take 100 s
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		errs := make(chan error, crowd)
		for range crowd {
			go func() { errs <- s.Ping(ctx) }()
		}
		for range crowd {
			err := <-errs
			if err == nil || errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "another program keeps it locked") {
				t.Fatalf("got %v, want that another program has the lock", err)
			}
		}
	})
	t.Run("readers see the state", func(t *testing.T) {
		if _, err := s.State(t.Context()); err != nil {
			t.Error(err)
		}
	})
	unlock()
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("after the lock: %v", err)
	}
}

func TestOpenWhileLocked(t *testing.T) {
	t.Parallel()
	path, _ := laidDown(t)
	defer lockedElsewhere(t, path)()
	refused(t, path, "another program keeps it locked")
}

// What is damaged is refused with what to do, and left as it is.
func TestDamaged(t *testing.T) {
	t.Parallel()
	const page = 4096
	for name, damage := range map[string]func(raw []byte) []byte{
		"header overwritten":     func(raw []byte) []byte { copy(raw, "this is not what was here before"); return raw },
		"first page overwritten": func(raw []byte) []byte { copy(raw[100:page], strings.Repeat("garbage ", page/8)); return raw },
		"a page overwritten": func(raw []byte) []byte {
			copy(raw[8*page:9*page], strings.Repeat("garbage ", page/8))
			return raw
		},
		"pages of nothing":  func(raw []byte) []byte { clear(raw[5*page:]); return raw },
		"cut at a page":     func(raw []byte) []byte { return raw[:len(raw)/page/2*page] },
		"cut within a page": func(raw []byte) []byte { return raw[:len(raw)/2+123] },
		"cut in the header": func(raw []byte) []byte { return raw[:50] },
		"empty":             func([]byte) []byte { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, _ := laidDown(t)
			raw, err := os.ReadFile(path)
			if err != nil || len(raw) < 10*page {
				t.Fatalf("%d bytes, %v", len(raw), err)
			}
			after := damage(raw)
			if err := os.WriteFile(path, after, 0o600); err != nil {
				t.Fatal(err)
			}
			refused(t, path, "restore a backup", "docs/operations.md")
			if now, err := os.ReadFile(path); err != nil || string(now) != string(after) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
}

// A database that was there and is not is no reason to begin another site, which would
// disown every runner.
func TestLostDatabase(t *testing.T) {
	t.Parallel()
	path, site := laidDown(t)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	refused(t, path, "is gone", site, "restore a backup", path+".lock")
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("another one was made: %v", err)
	}
	if err := os.Remove(path + ".lock"); err != nil {
		t.Fatal(err)
	}
	if s := openAt(t, path, time.Now); s.Site() == site {
		t.Error("a new site has the old one's id")
	}
}

// Who restores a backup under a controller that runs must not have it go on as if
// nothing had happened: what it takes then is in no file that a path leads to.
func TestReplacedWhileOpen(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	s := openAt(t, path, time.Now)
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "stop the controller before") {
		t.Errorf("without its file: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ingest(t.Context(), fleet.Ingest{Delivery: fleet.Delivery{GUID: "g", Event: "ping", Status: fleet.DeliveryProcessed}}); err == nil {
		t.Error("a delivery was stored in a file that is gone")
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err != nil {
		t.Errorf("with its file back: %v", err)
	}
}

// A file that may not be written is immutable here, which binds root as well and, on some
// file systems, also what is open already.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "x.db")
	immutable := func(t *testing.T, file string) (mutable func()) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), "chattr", "+i", file).CombinedOutput(); err != nil {
			t.Skipf("files cannot be made immutable here, which takes root and ext4: %v %s", err, out)
		}
		mutable = sync.OnceFunc(func() {
			if out, err := exec.Command("chattr", "-i", file).CombinedOutput(); err != nil { //nolint:noctx // also when the test is over
				t.Errorf("chattr: %v %s", err, out)
			}
		})
		t.Cleanup(mutable)
		return mutable
	}
	t.Run("while open", func(t *testing.T) {
		s := openAt(t, path, time.Now)
		if err := s.Ping(t.Context()); err != nil {
			t.Fatal(err)
		}
		bound, err := os.Create(filepath.Join(t.TempDir(), "bound"))
		if err != nil {
			t.Fatal(err)
		}
		defer bound.Close()
		defer immutable(t, bound.Name())()
		if _, err := bound.WriteString("x"); err == nil {
			t.Skip("an immutable file that is open can be written to here, as on XFS: ext4 is needed")
		}
		mutable := immutable(t, path+"-wal")
		if err := s.Ping(t.Context()); err == nil || !strings.Contains(err.Error(), "its volume fails") && !strings.Contains(err.Error(), "cannot be written") {
			t.Errorf("read-only: %v", err)
		}
		if _, err := s.State(t.Context()); err != nil {
			t.Errorf("it cannot be read either: %v", err)
		}
		mutable()
		if err := s.Ping(t.Context()); err != nil {
			t.Errorf("writable again: %v", err)
		}
	})
	t.Run("the file", func(t *testing.T) {
		defer immutable(t, path)()
		refused(t, path, "cannot be written", "right to write")
	})
	t.Run("the folder", func(t *testing.T) {
		fresh := t.TempDir()
		defer immutable(t, fresh)()
		refused(t, filepath.Join(fresh, "new.db"), "cannot be written", "right to write")
	})
	t.Run("writable again", func(t *testing.T) { openAt(t, path, time.Now) })
}
