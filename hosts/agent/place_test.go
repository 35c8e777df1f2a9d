// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/secret"
)

// A state folder may be moved, and a copy may take the place of an original that is gone,
// but not stand beside it.
func TestAStateFolderThatIsMovedOrCopied(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	begin := func(name string) error {
		t.Helper()
		a, err := agent.New(agent.Config{
			Controller: "http://127.0.0.1:1", Name: "a", StateDir: path(name), Slots: 1, Machines: &agent.VMs{}, EnrolmentToken: secret.New("x"),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // it opens its folder and ends
		return a.Run(ctx)
	}
	duplicate := func(from, to string) {
		t.Helper()
		if err := os.CopyFS(path(to), os.DirFS(path(from))); err != nil {
			t.Fatal(err)
		}
	}
	works := func(name string) {
		t.Helper()
		if err := begin(name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	works("first")
	works("first")
	if err := os.Symlink(path("first"), path("link")); err != nil {
		t.Fatal(err)
	}
	works("link")
	if err := os.Rename(path("first"), path("moved")); err != nil {
		t.Fatal(err)
	}
	works("moved")
	duplicate("moved", "copy")
	if err := begin("copy"); err == nil || !strings.Contains(err.Error(), "is a copy of") || !strings.Contains(err.Error(), path("moved")) {
		t.Errorf("a copy beside its original: %v", err)
	}
	works("moved")
	if err := os.RemoveAll(path("moved")); err != nil {
		t.Fatal(err)
	}
	works("copy")
}
