// SPDX-License-Identifier: MIT

package layout

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/vm"
	"github.com/minifleet/minifleet/vm/options"
)

// openBundle reads what the image brought into the bundle of a machine that has ended, in
// the state in which the machine left it.
func openBundle(root string, has func(name string) bool) (*Template, error) {
	if !has(FileImage) {
		return nil, fmt.Errorf("it is the bundle of a machine, and has no %s of its image: put one there that says what the image is", FileImage)
	}
	locked, err := vm.IsLocked(root)
	if err != nil {
		return nil, err
	}
	if locked {
		return nil, fmt.Errorf("%w: shut it down first", vm.ErrLocked)
	}
	return openOurs(root, func(name string) bool { return vm.OfBundle(name) || name == options.FileMachineID })
}

// openOurs reads a folder with an image.json. What skip says of names at its top is no
// part of the image.
func openOurs(root string, skip func(name string) bool) (*Template, error) {
	m, err := ReadImage(root)
	if err != nil {
		return nil, err
	}
	t := &Template{Manifest: m.manifest()}
	if t.Files, err = walk(root, skip); err != nil {
		return nil, err
	}
	if len(t.Files) == 0 {
		return nil, fmt.Errorf("there is nothing beside its %s", FileImage)
	}
	return t, t.model()
}

// model has the hardware model both in the manifest and as the file that the backend reads.
func (t *Template) model() error {
	m := &t.Manifest
	for _, f := range t.Files {
		if f.Path != options.FileHardwareModel {
			continue
		}
		b, err := readSmall(f.Source, maxModelBytes)
		if err != nil {
			return err
		}
		if err := checkModel(b); err != nil {
			return fmt.Errorf("%s: %w", options.FileHardwareModel, err)
		}
		if m.GuestOS != guestDarwin {
			return fmt.Errorf("it has a %s, and yet its guest_os is %s: correct %s, or remove the file", options.FileHardwareModel, m.GuestOS, FileImage)
		}
		if m.HardwareModel != nil && !bytes.Equal(m.HardwareModel, b) {
			return fmt.Errorf("the hardware_model of %s is another than that in %s: remove the wrong one", FileImage, options.FileHardwareModel)
		}
		m.HardwareModel = b
		return nil
	}
	if m.HardwareModel != nil {
		t.Files = append(t.Files, modelFile(m.HardwareModel))
	}
	return nil
}

// walk lists the files of an image. The published form knows files and nothing else, so
// that what it would lose is refused.
func walk(root string, skip func(name string) bool) ([]File, error) {
	var files []File
	empty := map[string]bool{} // folders in which nothing was found yet
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil || rel == "." {
			return err
		}
		rel = filepath.ToSlash(rel)
		if top := !strings.Contains(rel, "/"); top && (rel == FileImage || skip != nil && skip(rel)) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		if err := manifest.ValidatePath(rel); err != nil {
			return err
		}
		delete(empty, filepath.Dir(path))
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch info.Mode().Type() {
		case fs.ModeDir:
			empty[path] = true
			return nil
		case 0:
		case fs.ModeSymlink:
			return fmt.Errorf("%s is a link, which images that are published cannot have: put the file itself there, or remove it", rel)
		default:
			return fmt.Errorf("%s is neither a file nor a folder: remove it from the image", rel)
		}
		if len(files) == manifest.MaxFiles {
			return fmt.Errorf("it has more than %d files: pack them into a disk", manifest.MaxFiles)
		}
		files = append(files, File{Path: rel, Mode: uint32(info.Mode().Perm()), Source: path})
		return nil
	})
	for dir := range empty {
		rel, _ := filepath.Rel(root, dir)
		err = errors.Join(err, fmt.Errorf("the folder %s is empty, and images that are published have files only: remove it, or put a file there", filepath.ToSlash(rel)))
	}
	return files, err
}
