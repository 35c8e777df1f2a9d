// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/crashpoint"
)

// Remove deletes the bundle dir, or what Scan found Unfinished. It fails with
// ErrLocked while a machine runs. The bundle is renamed first, so a deletion that was
// cut short leaves something that Scan calls Unfinished and nothing else takes for a
// bundle. To call it again after such an error deletes the rest. Removing what is not
// there succeeds.
func Remove(ctx context.Context, dir string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("remove %s: %w", dir, context.Cause(ctx))
	}
	name := filepath.Base(dir)
	isBundle := ValidateID(name) == nil
	if !isBundle && !strings.HasPrefix(name, prefixNew) && !strings.HasPrefix(name, prefixTrash) {
		return fmt.Errorf("remove %s: this is no bundle", dir)
	}
	lock, err := tryLock(dir, unix.LOCK_EX)
	switch {
	case err == nil:
		// Held while deleting: a vmm that is just about to start finds it taken.
		defer lock.release()
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("remove: %w", err)
	case isBundle:
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return removeRest(dir)
		}
		if _, err := os.Lstat(filepath.Join(dir, FileSpec)); err != nil {
			return fmt.Errorf("remove %s: this is no bundle: it has neither %s nor %s", dir, FileLock, FileSpec)
		}
	}
	if isBundle {
		trash := filepath.Join(filepath.Dir(dir), prefixTrash+name+"-"+rand.Text()[:trashSuffix])
		if err := os.Rename(dir, trash); err != nil {
			return fmt.Errorf("remove bundle %s: %w", name, err)
		}
		dir = trash
		crashpoint.Reached(crashpoint.BundleTrashed)
	}
	if err := removeTree(dir); err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	return nil
}

// trashSuffix is how many random characters end the name of a bundle that is deleted.
const trashSuffix = 8

// removeRest deletes what earlier deletions of the bundle dir could not. Ids have no capital
// letters and the random characters no small ones, so that no other bundle's is taken for it.
func removeRest(dir string) error {
	vms, name := filepath.Split(dir)
	entries, err := os.ReadDir(vms)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	for _, e := range entries {
		random, ok := strings.CutPrefix(e.Name(), prefixTrash+name+"-")
		if !ok || len(random) != trashSuffix || random != strings.ToUpper(random) {
			continue
		}
		if err := removeTree(filepath.Join(vms, e.Name())); err != nil {
			return fmt.Errorf("remove %s: %w", filepath.Join(vms, e.Name()), err)
		}
	}
	return nil
}

// removeTree deletes a folder and everything in it, also where a job took away the
// permission to write: module caches and the like are made read-only.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	// WalkDir calls before it reads a folder, so each is opened up in time.
	walkErr := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			err = os.Chmod(path, 0o700)
		}
		return err
	})
	if err := os.RemoveAll(dir); err != nil {
		return errors.Join(err, walkErr)
	}
	return nil
}
