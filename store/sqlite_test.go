// SPDX-License-Identifier: MIT

package store_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

func openSQLite(t *testing.T, now func() time.Time) *store.Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "minifleet.db"), now)
}

func openAt(t *testing.T, path string, now func() time.Time) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func TestSQLite(t *testing.T) {
	t.Parallel()
	suite(t, openSQLite)
}

func TestPragmasOnEveryConnection(t *testing.T) {
	t.Parallel()
	s := openSQLite(t, time.Now)
	for name, db := range s.Pools() {
		conns := db.Stats().MaxOpenConnections
		if conns < 1 {
			t.Fatalf("%s: the number of connections has no bound", name)
		}
		for i := range conns { // all are held at once, so that each is another one
			c, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			busy := map[string]string{"read": "1000", "write": "0"}[name] // begin waits for the writer
			for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "foreign_keys": "1", "busy_timeout": busy} {
				var got string
				if err := c.QueryRowContext(t.Context(), "PRAGMA "+pragma).Scan(&got); err != nil {
					t.Fatal(err)
				}
				if got != want {
					t.Errorf("%s connection %d: %s = %s, want %s", name, i, pragma, got, want)
				}
			}
		}
	}
}

func TestFilesArePrivate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "minifleet.db")
	w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
	w.job(1, fleet.ToldQueued, "")
	w.state()
	for _, name := range []string{path, path + "-wal", path + "-shm"} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", filepath.Base(name), info.Mode().Perm())
		}
	}
}

func TestAFileThatOthersCouldReadIsMadePrivate(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "x.db")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	openAt(t, path, time.Now)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestPathsWithSpecialCharacters(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"with space.db", "what?.db", "no#1.db", "100%.db", "%41.db", "a&b=c;d.db", "mode=memory.db", "ünï.db", "quote'\".db", "a+b.db", ":memory:", "file:x.db", "back\\slash.db",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, name)
			s := openAt(t, path, time.Now)
			site := s.Site()
			if err := s.Ping(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			entries, err := os.ReadDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if !strings.HasPrefix(e.Name(), name) {
					t.Errorf("a file of another name was made: %q", e.Name())
				}
			}
			if info, err := os.Stat(path); err != nil || info.Size() == 0 {
				t.Errorf("the database is not in the file: %v, %v", info, err)
			}
			if again := openAt(t, path, time.Now); again.Site() != site {
				t.Errorf("opened again it has site %s, before %s", again.Site(), site)
			}
		})
	}
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	s := openAt(t, "minifleet.db", time.Now)
	if _, err := os.Stat("minifleet.db-wal"); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if again := openAt(t, "./minifleet.db", time.Now); again.Site() != s.Site() {
		t.Error("./minifleet.db is another database")
	}
}

func TestOpenAgainKeepsEverything(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "minifleet.db")
	var site string
	var id fleet.RunnerID
	t.Run("first", func(t *testing.T) {
		w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
		site = w.s.Site()
		if len(site) != 8 || strings.Trim(site, "abcdefghijklmnopqrstuvwxyz234567") != "" {
			t.Errorf("site %q", site)
		}
		id = w.minted(w.host("a", 2), 1, "mf-1")
	})
	t.Run("second", func(t *testing.T) {
		w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
		if w.s.Site() != site || w.s.Epoch() != 1 {
			t.Errorf("site %q, epoch %d; before %q, 1", w.s.Site(), w.s.Epoch(), site)
		}
		if r := w.runner(id); r.Registration != fleet.RegMinted || r.RunnerName != "mf-1" || r.GitHubID != 1001 {
			t.Errorf("%+v", r)
		}
		if tl, err := w.s.Timeline(w.ctx(), id); err != nil || len(tl) < 3 {
			t.Errorf("timeline %+v, %v", tl, err)
		}
	})
	t.Run("another file is another site", func(t *testing.T) {
		if s := openSQLite(t, time.Now); s.Site() == site {
			t.Error("two databases have one site id")
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("this is no database\n", 500)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{
		"no path": "", "no folder": filepath.Join(dir, "missing", "x.db"), "a folder": dir, "not a database": garbage,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, err := store.Open(t.Context(), store.Config{Path: path})
			if err == nil {
				s.Close()
				t.Fatal("opened")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "database") {
				t.Errorf("the error does not say which database: %v", err)
			}
		})
	}
	t.Run("newer schema", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "x.db")
		s := openAt(t, path, time.Now)
		if _, err := s.Pools()["write"].ExecContext(t.Context(), `CREATE TABLE note (x TEXT)`); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		again := openAt(t, path, time.Now)
		var n int
		if err := again.Pools()["read"].QueryRowContext(t.Context(), `SELECT COUNT(*) FROM note`).Scan(&n); err != nil {
			t.Errorf("opening again made the schema anew: %v", err)
		}
	})
}

// A read sees one moment and does not wait for a writer, nor a writer for it.
func TestReadersAndWriterDoNotWaitForEachOther(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	w.job(1, fleet.ToldQueued, "")
	tx, err := w.s.Pools()["write"].BeginTx(w.ctx(), nil)
	w.must(err)
	if _, err := tx.ExecContext(w.ctx(), `DELETE FROM jobs`); err != nil {
		t.Fatal(err)
	}
	st, err := w.s.State(w.ctx()) // were it to wait, the busy timeout would end it
	if err != nil || len(st.Jobs) != 1 {
		t.Errorf("a reader beside an open write transaction: %d jobs, %v", len(st.Jobs), err)
	}
	w.must(tx.Rollback())

	rtx, err := w.s.Pools()["read"].BeginTx(w.ctx(), &sql.TxOptions{ReadOnly: true})
	w.must(err)
	defer rtx.Rollback() //nolint:errcheck // a read
	var n int
	w.must(rtx.QueryRowContext(w.ctx(), `SELECT COUNT(*) FROM jobs`).Scan(&n))
	if err := w.s.Learn(w.ctx(), *news(2, fleet.ToldQueued, "")); err != nil {
		t.Errorf("a writer beside an open read transaction: %v", err)
	}
	w.must(rtx.QueryRowContext(w.ctx(), `SELECT COUNT(*) FROM jobs`).Scan(&n))
	if n != 1 {
		t.Errorf("the open read sees %d jobs, want 1", n)
	}
}
