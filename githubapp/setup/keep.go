// SPDX-License-Identifier: MIT

package setup

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/minifleet/minifleet/secret"
)

// kept is a file to be written.
type kept struct {
	name    string
	content secret.Text
}

// prepare makes the folder and proves that files can be written there, before
// anything is made at GitHub that would have to be kept.
func prepare(dir string, force bool, names ...string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("no folder %s can be made: %w: give another --dir", dir, err)
	}
	var errs []error
	for _, name := range names {
		path := filepath.Join(dir, name)
		switch info, err := os.Lstat(path); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			errs = append(errs, err)
		case !info.Mode().IsRegular():
			errs = append(errs, fmt.Errorf("%s is not a file: give another --dir", path))
		case !force:
			errs = append(errs, fmt.Errorf("%s is there already: give another --dir, or --force to replace it; check an App that exists with minifleet setup check", path))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	probe, err := newFile(dir, "probe", make([]byte, 64<<10))
	if err != nil {
		return fmt.Errorf("nothing can be kept in %s: %w", dir, err)
	}
	return os.Remove(probe)
}

// keep writes files of mode 0600 durably: each is whole on the disk before it has
// its name. It can be repeated after a failure. Without force it replaces no file of
// other content.
func keep(dir string, force bool, files ...kept) error {
	var made []string
	defer func() {
		for _, path := range made {
			os.Remove(path) //nolint:errcheck // none is left where all went well
		}
	}()
	for _, f := range files {
		path, err := newFile(dir, f.name, []byte(f.content.Reveal()))
		if err != nil {
			return err
		}
		made = append(made, path)
	}
	for i, f := range files {
		if err := name(made[i], filepath.Join(dir, f.name), force, []byte(f.content.Reveal())); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// name gives a written file its name.
func name(from, to string, force bool, content []byte) error {
	if force {
		return os.Rename(from, to)
	}
	err := os.Link(from, to) // which, unlike a renaming, replaces nothing
	if errors.Is(err, fs.ErrExist) {
		if is, readErr := os.ReadFile(to); readErr == nil && bytes.Equal(is, content) {
			return nil // of an attempt before
		}
		return fmt.Errorf("%s has appeared meanwhile and is not replaced", to)
	}
	return err
}

// newFile writes a new file of mode 0600 to the disk and returns its path.
func newFile(dir, name string, content []byte) (path string, err error) {
	path = filepath.Join(dir, "."+name+"."+rand.Text()[:8]+".new")
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	_, err = f.Write(content)
	err = errors.Join(err, f.Sync(), f.Close())
	return path, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func sortedKeys[V any](m map[string]V) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// rewrite replaces a file that keep made.
func rewrite(dir, name, text string) error {
	return keep(dir, true, kept{name, secret.New(text)})
}
