// SPDX-License-Identifier: MIT

package vm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/internal/durable"
)

// CreateConfig says which bundle to make.
type CreateConfig struct {
	// Dir is the folder of all bundles; it must exist. The bundle becomes Dir/Spec.ID.
	Dir  string
	Spec Spec
	// ImageDir is the image's folder, whose content is cloned into the bundle. "" makes a
	// bundle without a disk.
	ImageDir string
	// Clone says what to do where copy-on-write does not work; by default to fail.
	Clone CloneMode
	// Progress, if set, is called after each file and each copied piece, one call at a time.
	Progress func(Progress)
}

// ErrExists says that there is a bundle of this id.
var ErrExists = errors.New("the bundle exists")

// Create makes a bundle and returns its folder. It is prepared aside and renamed into
// place, so what bears a machine's id is always whole. After an error, or when ctx
// ends, nothing is left.
func Create(ctx context.Context, cfg CreateConfig) (dir string, err error) {
	spec, err := cfg.Spec.Encode()
	if err != nil {
		return "", fmt.Errorf("create bundle %.60q: %w", cfg.Spec.ID, err)
	}
	if err := CheckPath(cfg.Dir, cfg.Spec.ID); err != nil {
		return "", fmt.Errorf("create bundle %s: %w", cfg.Spec.ID, err)
	}
	dir = filepath.Join(cfg.Dir, cfg.Spec.ID)
	if _, err := os.Lstat(dir); err == nil {
		return "", fmt.Errorf("create %s: %w", dir, ErrExists)
	}
	tmp, err := os.MkdirTemp(cfg.Dir, prefixNew+cfg.Spec.ID+"-") // 0700
	if err != nil {
		return "", fmt.Errorf("create bundle %s: %w", cfg.Spec.ID, err)
	}
	lock, err := createLock(tmp) // tells a Scan that someone is at work here
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTree(tmp))
		}
		if lock != nil {
			lock.release()
		}
	}()
	if err == nil {
		crashpoint.Reached(crashpoint.BundleBegun)
		err = fill(ctx, cfg, spec, tmp)
	}
	if err == nil {
		crashpoint.Reached(crashpoint.BundleFilled)
		err = putInPlace(tmp, dir)
	}
	if err != nil {
		return "", fmt.Errorf("create bundle %s: %w", cfg.Spec.ID, err)
	}
	crashpoint.Reached(crashpoint.BundlePlaced)
	return dir, nil
}

// putInPlace renames the finished bundle. A rename onto an empty folder would succeed,
// onto a bundle it fails: a bundle is never empty.
func putInPlace(tmp, dir string) error {
	err := os.Rename(tmp, dir)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("%s: %w", dir, ErrExists)
	}
	if err != nil {
		return err
	}
	return durable.Sync(filepath.Dir(dir))
}

func fill(ctx context.Context, cfg CreateConfig, spec []byte, tmp string) error {
	if cfg.ImageDir != "" {
		c := cloner{mode: cfg.Clone, notify: cfg.Progress}
		if err := c.tree(ctx, cfg.ImageDir, tmp); err != nil {
			return err
		}
	}
	if err := writeFileSync(filepath.Join(tmp, FileSpec), spec); err != nil {
		return err
	}
	return durable.Sync(tmp)
}

// tree clones the content of the folder src into the existing folder dst: files,
// folders and relative symbolic links that stay inside. Anything else is an error.
func (c *cloner) tree(ctx context.Context, src, dst string) error {
	root, err := filepath.EvalSymlinks(src)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	var folders []folder
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("image: %w", err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rel, err := filepath.Rel(root, path)
		switch {
		case err != nil:
			return err
		case rel != ".":
			return c.entry(ctx, root, rel, dst, e, &folders)
		case !e.IsDir():
			return fmt.Errorf("image %s is not a folder", root)
		}
		return nil
	})
	if err != nil {
		return err
	}
	// From the innermost outwards, and last of all: a folder may forbid writing, and
	// writing into it changes its time.
	for i := len(folders) - 1; i >= 0; i-- {
		if err := keep(folders[i].path, folders[i].info); err != nil {
			return err
		}
	}
	return nil
}

// folder is a folder of the bundle and the image's one that it is a clone of.
type folder struct {
	path string
	info fs.FileInfo
}

// entry clones one thing of the image root, whose path in it is rel.
func (c *cloner) entry(ctx context.Context, root, rel, dst string, e fs.DirEntry, folders *[]folder) error {
	top := filepath.Dir(rel) == "."
	if c.ours && top && OfBundle(rel) {
		return nil
	}
	if top && reserved(rel) {
		return fmt.Errorf("image %s: the name %s belongs to the bundle: rename it in the image", root, rel)
	}
	to := filepath.Join(dst, rel)
	switch e.Type() {
	case fs.ModeDir:
		info, err := e.Info()
		if err != nil {
			return err
		}
		*folders = append(*folders, folder{to, info})
		return os.Mkdir(to, 0o700)
	case 0:
		return c.regular(ctx, filepath.Join(root, rel), to)
	case fs.ModeSymlink:
		return symlink(root, rel, to)
	default:
		return fmt.Errorf("image %s: %s is neither a file, a folder nor a link (%s): remove it from the image", root, rel, e.Type())
	}
}

// regular clones one file with its permissions and time.
func (c *cloner) regular(ctx context.Context, path, to string) error {
	// Without O_NONBLOCK, a pipe that took the file's place since it was listed would
	// block for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("image: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("image: %s is no longer a file", path)
	}
	if err := c.file(ctx, f, to); err != nil {
		return err
	}
	return keep(to, info)
}

// keep gives path the permissions and the time of the original. Bits that lend a
// program its owner's rights are not permissions of the image's files.
func keep(path string, info fs.FileInfo) error {
	if err := os.Chmod(path, info.Mode().Perm()); err != nil {
		return err
	}
	return os.Chtimes(path, info.ModTime(), info.ModTime())
}

// symlink makes the link anew, if it points to somewhere inside the image.
func symlink(root, rel, to string) error {
	target, err := os.Readlink(filepath.Join(root, rel))
	if err != nil {
		return err
	}
	inside := filepath.Join(filepath.Dir(rel), target)
	// A link at the top could name one of the bundle's own files, and a guest's write
	// through it would go there: links live inside the image's folders.
	first, _, _ := strings.Cut(filepath.ToSlash(inside), "/")
	if filepath.IsAbs(target) || !filepath.IsLocal(inside) || reserved(first) || climbsLate(target) {
		return fmt.Errorf("image %s: the link %s points to %s, outside the image: make it relative and keep it inside", root, rel, target)
	}
	return os.Symlink(target, to)
}

// climbsLate reports whether a link's target has a ".." after another name. That name
// may be a link itself, and then the path as text does not say where the ".." leads.
func climbsLate(target string) bool {
	down := false
	for part := range strings.SplitSeq(filepath.ToSlash(target), "/") {
		switch part {
		case "", ".":
		case "..":
			if down {
				return true
			}
		default:
			down = true
		}
	}
	return false
}
