// SPDX-License-Identifier: MIT

package assemble_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// volume mounts a file system of its own, which a test that needs it does not go without
// under CI.
func volume(t *testing.T, kind string, size int64) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), kind)
	fail := func(err error, out []byte) {
		if os.Getenv("CI") == "true" {
			t.Fatalf("a volume of %s cannot be made here: %v\n%s", kind, err, out)
		}
		t.Skipf("a volume of %s cannot be made here: %v", kind, err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if kind == "tmpfs" {
		if err := unix.Mount("none", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
			fail(err, nil)
		}
	} else {
		file := dir + ".img"
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		for _, cmd := range [][]string{{"mkfs." + kind, "-q", file}, {"mount", "-o", "loop", file, dir}} {
			if out, err := exec.CommandContext(t.Context(), cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
				fail(err, out)
			}
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}
