// SPDX-License-Identifier: MIT

// Package durable writes files, and their names, so that a power cut at any moment leaves the
// old or the new.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Prefix begins the names of files that are being written. Who dies meanwhile leaves one.
const Prefix = ".new-"

// WriteFile replaces a file.
func WriteFile(path string, content []byte, mode fs.FileMode) error {
	next, err := Aside(path, content, mode)
	if err != nil {
		return err
	}
	return Place(next, path)
}

// Aside writes what is to replace a file into a new one beside it, durably, and returns its
// path. Place then puts it there.
func Aside(path string, content []byte, mode fs.FileMode) (next string, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), Prefix)
	if err != nil {
		return "", err
	}
	return f.Name(), fill(f, content, mode)
}

// Place puts a file that was written aside in its place, durably. After an error it may be
// there, and is not aside any more.
func Place(next, path string) error {
	if err := Rename(next, path); err != nil {
		if removed := os.Remove(next); !errors.Is(removed, fs.ErrNotExist) {
			err = errors.Join(err, removed)
		}
		return err
	}
	return nil
}

// Create makes a file whose content is durable, and whose name is not until Sync of its
// folder. What has the name is removed first: nobody can put a link in the way.
func Create(path string, content []byte, mode fs.FileMode) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	return fill(f, content, mode)
}

// fill writes, syncs and closes a new file, and removes it if that fails.
func fill(f *os.File, content []byte, mode fs.FileMode) error {
	_, err := f.Write(content)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// Rename renames a file or a folder within one folder, durably. That the content is durable
// is the caller's affair.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return Sync(filepath.Dir(to))
}

// Sync forces a file's content, or the names in a folder, to the disk.
func Sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
