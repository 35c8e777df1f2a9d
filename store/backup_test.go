// SPDX-License-Identifier: MIT

package store_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/store"
)

// A backup is taken while the controller has the database open and is in the middle of
// a change: it is whole, private, and holds what was committed before.
func TestBackup(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, to := filepath.Join(dir, "minifleet.db"), filepath.Join(dir, "copy.db")
	s := openAt(t, path, time.Now)
	write := s.Pools()["write"]
	mark := func(db interface {
		Exec(string, ...any) (sql.Result, error)
	}, name string,
	) {
		t.Helper()
		if _, err := db.Exec(`INSERT INTO meta (name, value) VALUES ($1, 'x')`, name); err != nil {
			t.Fatal(err)
		}
	}
	mark(write, "before")
	change, err := write.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer change.Rollback()
	mark(change, "uncommitted")

	size, err := store.Backup(t.Context(), path, to)
	if err != nil {
		t.Fatal(err)
	}
	if err := change.Commit(); err != nil {
		t.Errorf("the backup disturbs a change: %v", err)
	}
	info, err := os.Stat(to)
	if err != nil || info.Size() != size || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v %v, want %d bytes for its owner alone", info, err, size)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".copy*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	restored := openAt(t, to, time.Now)
	if restored.Site() != s.Site() {
		t.Errorf("site %s, want %s", restored.Site(), s.Site())
	}
	for name, want := range map[string]int{"before": 1, "uncommitted": 0} {
		var n int
		if err := restored.Pools()["read"].QueryRow(`SELECT count(*) FROM meta WHERE name = $1`, name).Scan(&n); err != nil || n != want {
			t.Errorf("the copy has %d of %q, want %d (%v)", n, name, want, err)
		}
	}
}

func TestBackupRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "minifleet.db")
	openAt(t, path, time.Now)
	foreign := filepath.Join(dir, "foreign.db")
	db, err := sql.Open("sqlite", foreign)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec(`CREATE TABLE t (x)`); err != nil {
		t.Fatal(err)
	}
	file := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	for name, tc := range map[string]struct{ from, to, want string }{
		"no database":        {filepath.Join(dir, "none.db"), filepath.Join(dir, "a.db"), "no such file"},
		"not a database":     {file("text.db", strings.Repeat("just text\n", 500)), filepath.Join(dir, "b.db"), "not a database"},
		"another's database": {foreign, filepath.Join(dir, "c.db"), "not a database of Minifleet"},
		"no such folder":     {path, filepath.Join(dir, "none", "d.db"), "no such file"},
		"a file is there":    {path, file("precious", "text"), "precious exists"},
	} {
		t.Run(name, func(t *testing.T) {
			before, _ := os.ReadFile(tc.to)
			if _, err := store.Backup(t.Context(), tc.from, tc.to); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
			if after, _ := os.ReadFile(tc.to); string(after) != string(before) {
				t.Error("the target was touched")
			}
		})
	}
}
