// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// mountSmall puts a small volume onto a folder.
func mountSmall(t *testing.T, dir, size string) {
	t.Helper()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size="+size); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("a small volume cannot be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}
