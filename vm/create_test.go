// SPDX-License-Identifier: MIT

package vm_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/vm"
)

// newImage makes an image folder with one of everything that an image may have.
func newImage(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"root/bin", "root/locked", "root/empty"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(dir, "image.json"), "{}")
	write(t, filepath.Join(dir, "root/bin/tool"), "#!/bin/sh\n")
	write(t, filepath.Join(dir, "root/locked/file"), "locked")
	write(t, filepath.Join(dir, "root/none"), "")
	sparseFile(t, filepath.Join(dir, "disk.img"))
	for name, target := range map[string]string{
		"root/bin/alias": "tool", "root/up": "./bin/tool", "root/bin/out-and-in": "../locked/file", "root/dangling": "bin/later",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{"root/bin/tool": 0o755, "root/locked/file": 0o400, "root/locked": 0o555, "disk.img": 0o644} {
		if err := os.Chmod(filepath.Join(dir, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	for _, name := range []string{"root/bin/tool", "root/bin", "root/locked"} {
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { os.Chmod(filepath.Join(dir, "root/locked"), 0o755) })
	return dir
}

const sparseSize = 64 << 20

// sparseFile makes a large file with a little data: at the start, amid a hole, at the end.
func sparseFile(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(sparseSize); err != nil {
		t.Fatal(err)
	}
	for _, off := range []int64{0, 20<<20 + 3, sparseSize - 5} {
		if _, err := f.WriteAt([]byte("data!"), off); err != nil {
			t.Fatal(err)
		}
	}
}

// listing describes a tree, the bundle's own files apart.
func listing(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch e.Type() {
		case fs.ModeDir:
			got[rel] = info.Mode().String() + " " + info.ModTime().UTC().String()
		case fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			got[rel] = "-> " + target
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			got[rel] = info.Mode().String() + " " + info.ModTime().UTC().String() + " " + string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(got, ".")
	return got
}

func allocated(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestCreateClonesTheImage(t *testing.T) {
	t.Parallel()
	vms, image := newVMs(t), newImage(t)
	var last vm.Progress
	dir, err := vm.Create(t.Context(), vm.CreateConfig{
		Dir: vms, Spec: newSpec("clone-1"), ImageDir: image, Clone: vm.CloneAllowCopy,
		Progress: func(p vm.Progress) { last = p },
	})
	if err != nil {
		t.Fatal(err)
	}
	want, got := listing(t, image), listing(t, dir)
	for _, own := range []string{vm.FileSpec, vm.FileLock} {
		if _, ok := got[own]; !ok {
			t.Errorf("the bundle has no %s", own)
		}
		delete(got, own)
	}
	for name := range want {
		if got[name] != want[name] {
			t.Errorf("%s: %.200q, want %.200q", name, got[name], want[name])
		}
		delete(got, name)
	}
	if len(got) != 0 {
		t.Errorf("the bundle has more than the image: %v", got)
	}
	if n := allocated(t, filepath.Join(dir, "disk.img")); n > sparseSize/8 {
		t.Errorf("the clone of the sparse file takes %d bytes", n)
	}
	if last.Files != 5 || last.Copying && (last.CopiedBytes == 0 || last.CopiedBytes > sparseSize/8) {
		t.Errorf("progress %+v", last)
	}
	// A clone is the machine's own.
	if err := os.WriteFile(filepath.Join(dir, "root/none"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(image, "root/none")); err != nil || len(b) != 0 {
		t.Errorf("the image changed with its clone: %q, %v", b, err)
	}
	if diff := cmp.Diff([]string{"clone-1"}, names(t, vms)); diff != "" {
		t.Error(diff)
	}
	if spec, err := vm.ReadSpec(dir); err != nil || cmp.Diff(newSpec("clone-1"), spec) != "" {
		t.Errorf("spec: %v\n%s", err, cmp.Diff(newSpec("clone-1"), spec))
	}
}

func TestCreateRefuses(t *testing.T) {
	t.Parallel()
	link := func(target, name string) func(*testing.T, string) {
		return func(t *testing.T, image string) {
			if err := os.Symlink(target, filepath.Join(image, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, tt := range map[string]struct {
		spoil func(t *testing.T, image string)
		want  string
	}{
		"absolute link":            {link("/etc/passwd", "root/l"), "outside the image"},
		"link that climbs out":     {link("../../etc", "root/l"), "outside the image"},
		"link through another":     {link("bin/alias/../../../x", "root/l"), "outside the image"},
		"link to the bundle's own": {link("../spec.json", "root/l"), "outside the image"},
		"pipe": {func(t *testing.T, image string) {
			if err := syscall.Mkfifo(filepath.Join(image, "root/pipe"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "neither a file"},
		"name of the bundle's own": {func(t *testing.T, image string) { write(t, filepath.Join(image, vm.FileStatus), "x") }, "belongs to the bundle"},
		"such a name in capitals":  {func(t *testing.T, image string) { write(t, filepath.Join(image, "SPEC.JSON"), "x") }, "belongs to the bundle"},
		"folder of such a name": {func(t *testing.T, image string) {
			if err := os.Mkdir(filepath.Join(image, vm.FileLock), 0o700); err != nil {
				t.Fatal(err)
			}
		}, "belongs to the bundle"},
		"no image": {func(t *testing.T, image string) {
			os.Chmod(filepath.Join(image, "root/locked"), 0o755)
			if err := os.RemoveAll(image); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			vms, image := newVMs(t), newImage(t)
			tt.spoil(t, image)
			_, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("bad-1"), ImageDir: image, Clone: vm.CloneAllowCopy})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("create: %v; want it to say %q", err, tt.want)
			}
			if left := names(t, vms); len(left) != 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func TestCreateTwice(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	dir := create(t, vms, newSpec("twice-1"))
	before := listing(t, dir)
	if _, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("twice-1")}); !errors.Is(err, vm.ErrExists) {
		t.Errorf("create again: %v", err)
	}
	if diff := cmp.Diff(before, listing(t, dir)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"twice-1"}, names(t, vms)); diff != "" {
		t.Error(diff)
	}
}

// TestCreateCalledOff cancels amid the copy.
func TestCreateCalledOff(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	cause := errors.New("the test's cause")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := vm.Create(ctx, vm.CreateConfig{
		Dir: vms, Spec: newSpec("off-1"), ImageDir: newImage(t), Clone: vm.CloneAllowCopy,
		Progress: func(vm.Progress) { cancel(cause) },
	})
	if !errors.Is(err, cause) {
		t.Errorf("create: %v", err)
	}
	if left := names(t, vms); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCreateWithoutCopyOnWrite(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	probe := vm.ProbeClone(vms, vms)
	if left := names(t, vms); len(left) != 0 {
		t.Errorf("the probe left %v", left)
	}
	if probe != nil && !errors.Is(probe, vm.ErrCloneUnsupported) {
		t.Fatalf("probe: %v", probe)
	}
	image := filepath.Join(vms, ".image") // on the same volume as the machines
	if err := os.Mkdir(image, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(image, "disk.img"), "data")
	_, err := vm.Create(t.Context(), vm.CreateConfig{Dir: vms, Spec: newSpec("cow-1"), ImageDir: image})
	if (err == nil) != (probe == nil) || err != nil && !errors.Is(err, vm.ErrCloneUnsupported) {
		t.Errorf("the probe says %v and a clone %v", probe, err)
	}
	if left := names(t, vms); probe != nil && cmp.Diff([]string{".image"}, left) != "" {
		t.Errorf("left: %v", left)
	}
}

func TestPathLimit(t *testing.T) {
	t.Parallel()
	vms := newVMs(t)
	// The longest that fits: DIR/ID/guest.sock has 103 bytes.
	pad := 103 - len(vms) - len("//id-1/guest.sock")
	for name, tt := range map[string]struct {
		length int
		want   error
	}{"just fits": {pad, nil}, "one too long": {pad + 1, vm.ErrPathTooLong}} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(vms, strings.Repeat("d", tt.length))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := vm.CheckPath(dir, "id-1"); !errors.Is(err, tt.want) {
				t.Errorf("check: %v, want %v", err, tt.want)
			}
			bundle, err := vm.Create(t.Context(), vm.CreateConfig{Dir: dir, Spec: newSpec("id-1")})
			if !errors.Is(err, tt.want) {
				t.Fatalf("create: %v, want %v", err, tt.want)
			}
			if err != nil {
				if !strings.Contains(err.Error(), "at least 1 bytes shorter") {
					t.Errorf("the error does not say what to do: %v", err)
				}
				return
			}
			awaitGuest(t, start(t, bundle))
		})
	}
	if err := vm.CheckPath("relative", "id-1"); err == nil {
		t.Error("a relative folder was accepted")
	}
}
