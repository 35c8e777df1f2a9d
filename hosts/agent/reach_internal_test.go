// SPDX-License-Identifier: MIT

package agent

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestWayToAnotherUsersVMs: another user gets through to the bundles that are that user's,
// and to nothing else.
func TestWayToAnotherUsersVMs(t *testing.T) {
	for otherUser, way := range map[bool]fs.FileMode{false: 0o700, true: 0o711} {
		dir := filepath.Join(t.TempDir(), "state")
		s, err := openState(dir, otherUser)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]fs.FileMode{"": way, DirVMs: way, dirRunners: 0o700, dirTombstones: 0o700, dirFailures: 0o700} {
			info, err := os.Stat(filepath.Join(dir, name))
			if err != nil || info.Mode().Perm() != want {
				t.Errorf("another user %v: %q has %v, %v; want %v", otherUser, name, info.Mode(), err, want)
			}
		}
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if info, err := os.Lstat(f); err != nil || info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: %v, %v: a file of the agent is another's to read", f, info.Mode(), err)
			}
		}
	}
}
