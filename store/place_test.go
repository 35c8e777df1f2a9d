// SPDX-License-Identifier: MIT

package store_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// original is a database with a host and a runner, closed, and a backup of it.
func original(t *testing.T) (path, backup, site string) {
	t.Helper()
	path, backup = filepath.Join(t.TempDir(), "state.db"), filepath.Join(t.TempDir(), "backup.db")
	s := openAs(t, path, store.CopyUndecided)
	w := &world{T: t, clock: &clock{t: time.Now()}, s: s, sequence: map[fleet.HostID]int64{}}
	h := w.host("a", 2)
	w.minted(h, 1, s.Site()+"-mac-aaaaaaaaaaaaaaaa")
	if s.Copied() {
		t.Error("a new database is taken for a copy")
	}
	if _, err := store.Backup(t.Context(), path, backup); err != nil {
		t.Fatal(err)
	}
	site = s.Site()
	w.must(s.Close())
	return path, backup, site
}

func openAs(t *testing.T, path string, as store.CopyAs) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: path, Copy: as})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func restored(t *testing.T, backup, to string) {
	t.Helper()
	b, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCopiedDatabase(t *testing.T) {
	t.Parallel()
	path, backup, site := original(t)
	reopened := func(path string, as store.CopyAs, copied bool) *store.Store {
		t.Helper()
		s := openAs(t, path, as)
		if s.Copied() != copied {
			t.Errorf("%s as %q: a copy: %t", path, as, s.Copied())
		}
		return s
	}
	closed := func(s *store.Store) {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	for _, as := range []store.CopyAs{store.CopyUndecided, store.CopyReplaces, store.CopyNewSite} { // of no copy nothing is changed
		s := reopened(path, as, false)
		if s.Site() != site || len(stateOf(t, s).Runners) != 1 {
			t.Errorf("as %q the original is site %s", as, s.Site())
		}
		closed(s)
	}
	restored(t, backup, path) // in its own place
	closed(reopened(path, store.CopyUndecided, false))

	elsewhere := filepath.Join(t.TempDir(), "state.db")
	restored(t, backup, elsewhere)
	for range 2 { // and a restart decides nothing
		s := reopened(elsewhere, store.CopyUndecided, true)
		if s.Site() != site || len(stateOf(t, s).Hosts) != 1 {
			t.Errorf("an undecided copy: site %s", s.Site())
		}
		closed(s)
	}
	s := reopened(elsewhere, store.CopyReplaces, false)
	if s.Site() != site || len(stateOf(t, s).Runners) != 1 {
		t.Errorf("a copy that replaces: site %s", s.Site())
	}
	closed(s)
	closed(reopened(elsewhere, store.CopyUndecided, false))

	other := filepath.Join(t.TempDir(), "state.db")
	restored(t, backup, other)
	s = reopened(other, store.CopyNewSite, false)
	st := stateOf(t, s)
	if s.Site() == site || len(st.Hosts) != 0 || len(st.Runners) != 0 {
		t.Errorf("a new site: %s, %d hosts, %d runners", s.Site(), len(st.Hosts), len(st.Runners))
	}
	if names, err := s.StandingNames(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("names %v, %v", names, err)
	}
	again := s.Site()
	closed(s)
	s = reopened(other, store.CopyNewSite, false) // a flag that stays does it once
	if s.Site() != again {
		t.Errorf("site %s became %s", again, s.Site())
	}
	closed(s)

	// The original does not mind its copies; without its file it is taken for one.
	closed(reopened(path, store.CopyUndecided, false))
	if err := os.Remove(path + ".place"); err != nil {
		t.Fatal(err)
	}
	closed(reopened(path, store.CopyUndecided, true))
}

func stateOf(t *testing.T, s *store.Store) fleet.State {
	t.Helper()
	st, err := s.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return st
}
