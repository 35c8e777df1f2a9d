// SPDX-License-Identifier: MIT

// Package layout reads the folders in which images lie on a disk: ours, tart's VM folder,
// and shoes-vz's template. It says what image a folder holds; it moves no bytes.
package layout

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// What a Mac's guest and processor are called.
const (
	guestDarwin = "darwin"
	archARM     = "arm64"
)

// Template is an image in a folder, whatever its layout.
type Template struct {
	Dir string // without links
	// Manifest has everything but the chunks: it has neither ChunkBytes nor Files.
	Manifest manifest.Manifest
	Files    []File // in the order of their paths
}

// File is a file that the image has, under the name that our backends read.
type File struct {
	Path string // in the image, as in manifest.File
	Mode uint32
	// Source is where its content lies; where it is "", Content is it, made from what the
	// folder says elsewhere.
	Source  string
	Content []byte
}

// FileMode is the mode of the files of an image that comes from another program: the same
// on every machine, so that the same image has the same digest.
const FileMode = 0o644

// Open says what image the folder dir holds: one of ours with its image.json, the bundle
// of a VM of ours that is not running, a VM of tart's that is not running, or a template
// of shoes-vz. Everything in it is a regular file of the image or known not to be part of it.
func Open(dir string) (*Template, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	if root, err = filepath.Abs(root); err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, fmt.Errorf("open image: %w", err)
	}
	// By the names as they are written: where case does not count, a file of one layout
	// answers to the name of another.
	has := func(name string) bool {
		return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	var t *Template
	switch {
	case has(vm.FileSpec) || has(vm.FileLock):
		t, err = openBundle(root, has)
	case has(FileImage):
		t, err = openOurs(root, nil)
	case has(tartConfig):
		t, err = openTart(root, has)
	case has(shoesModel) || has(shoesDisk):
		t, err = openShoes(root, has)
	default:
		err = fmt.Errorf("it is no image: it has neither %s (an image of Minifleet), %s (a VM of tart) nor %s (a template of shoes-vz)",
			FileImage, tartConfig, shoesModel)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", dir, err)
	}
	t.Dir = root
	slices.SortFunc(t.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return t, nil
}

// source is a file of a foreign layout under our name. It must be there.
func source(root, name, path string) (File, error) {
	at := filepath.Join(root, name)
	info, err := os.Lstat(at)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return File{}, fmt.Errorf("%s is missing", name)
	case err != nil:
		return File{}, err
	case !info.Mode().IsRegular():
		return File{}, fmt.Errorf("%s is no regular file: put the file itself there", name)
	case info.Size() == 0:
		return File{}, fmt.Errorf("%s is empty", name)
	}
	return File{Path: path, Mode: FileMode, Source: at}, nil
}

// modelFile is the hardware model as the backend reads it.
func modelFile(model []byte) File {
	return File{Path: options.FileHardwareModel, Mode: FileMode, Content: model}
}

// readSmall reads a file that is not larger than limit, and no link or device.
func readSmall(path string, limit int64) ([]byte, error) {
	// Without O_NONBLOCK a pipe would block for ever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("%s is a link: put the file itself there", filepath.Base(path))
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", filepath.Base(path))
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", filepath.Base(path), limit)
	}
	return b, nil
}
