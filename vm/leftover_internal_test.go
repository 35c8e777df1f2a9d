// SPDX-License-Identifier: MIT

package vm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestOpenFilesOfHypervisors(t *testing.T) {
	t.Parallel()
	got := parseOpenFiles([]byte("p421\nfcwd\nn/\nf12\nn/vms/a/disk.img\np1\nf1\nn/vms/b/disk.img\npx\nn/vms/c\n\np422\nf3\nn/x y"))
	want := map[int][]string{421: {"/", "/vms/a/disk.img"}, 422: {"/x y"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestWhatIsLeftOver(t *testing.T) {
	t.Parallel()
	vms := t.TempDir()
	for _, name := range []string{"runs", "ended", "nolock"} {
		if err := os.Mkdir(filepath.Join(vms, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"runs", "ended"} {
		lock, err := createLock(filepath.Join(vms, name))
		if err != nil {
			t.Fatal(err)
		}
		if name == "runs" {
			defer lock.release()
		} else {
			lock.release()
		}
	}
	for path, want := range map[string]bool{
		"runs/disk.img": false, "ended/disk.img": true, "nolock/disk.img": true, "removed/disk.img": true,
		".trash-a-12345678/nvram.bin": true, ".new-a-1/disk.img": false, "loose.img": false, "../images/a/disk.img": false, "": false,
	} {
		paths := []string{"/", "/usr/lib/dyld", filepath.Join(vms, path)}
		if got, err := leftOver(vms, paths); got != want || err != nil {
			t.Errorf("with %q open: left over %v, %v", path, got, err)
		}
	}
}

func FuzzOpenFiles(f *testing.F) {
	f.Add([]byte("p421\nfcwd\nn/\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for pid, paths := range parseOpenFiles(text) {
			for _, path := range paths {
				if pid <= 1 || strings.Contains(path, "\n") {
					t.Errorf("process %d has %q open", pid, path)
				}
			}
		}
	})
}
