// SPDX-License-Identifier: MIT

package states

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/vm"
)

// Names in the folder of all states.
const (
	fileAbout   = "state.json" // in a state's folder, what it is; its time is that of the last use
	prefixNew   = ".new-"      // a state half made
	prefixTrash = ".trash-"    // one half deleted
)

const (
	schema        = 1
	maxAboutBytes = 256 << 10
	maxSlot       = 1 << 20
)

// about is state.json.
type about struct {
	Schema int       `json:"schema"`
	Slot   int       `json:"slot"`
	Key    Key       `json:"key"`
	Bytes  int64     `json:"bytes"`
	MadeAt time.Time `json:"made_at"`
}

// name is the folder's name of what a state.json describes.
func (a about) name() (string, error) {
	key, err := a.Key.Name()
	if err != nil {
		return "", err
	}
	return strconv.Itoa(a.Slot) + "-" + key, nil
}

// parseAbout reads a state.json: known schema, no unknown key, nothing after it.
func parseAbout(b []byte) (about, error) {
	var a about
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&a); err != nil {
		return about{}, fmt.Errorf("%s: %w", fileAbout, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return about{}, fmt.Errorf("%s: something follows", fileAbout)
	}
	if a.Schema != schema || a.Slot < 1 || a.Slot > maxSlot || a.Bytes < 0 {
		return about{}, fmt.Errorf("%s: schema %d, slot %d, %d bytes: not one of this version", fileAbout, a.Schema, a.Slot, a.Bytes)
	}
	return a, nil
}

// readEntry reads the state in dir, which is whole if it has its name and its three parts.
func readEntry(dir string) (*entry, error) {
	path := filepath.Join(dir, fileAbout)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxAboutBytes {
		return nil, fmt.Errorf("%s is no file of at most %d bytes", path, maxAboutBytes)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	a, err := parseAbout(b)
	if err != nil {
		return nil, err
	}
	if name, err := a.name(); err != nil || name != filepath.Base(dir) {
		return nil, errors.Join(err, fmt.Errorf("%s is not of the state %s", fileAbout, filepath.Base(dir)))
	}
	for _, part := range []string{vm.DirState, vm.DirDisks} {
		if info, err := os.Lstat(filepath.Join(dir, part)); err != nil || !info.IsDir() {
			return nil, errors.Join(err, fmt.Errorf("%s is no folder", part))
		}
	}
	return &entry{about: a, dir: dir, used: info.ModTime()}, nil
}

// writeAbout writes state.json into dir.
func writeAbout(dir string, a about) error {
	b, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, fileAbout)
	// Whoever filled the folder may have put something in the way.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Chtimes(path, a.MadeAt, a.MadeAt)
}

// settle forces everything in dir to the disk, and returns what it takes there. Clones
// count in full, although they share their blocks with the image: nobody can tell cheaply.
func settle(dir string) (bytes int64, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.Type()&^fs.ModeDir != 0 {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if s, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += s.Blocks * 512 //nolint:unconvert // int64 on all systems of ours
		}
		return f.Sync()
	})
	return bytes, err
}

// freeBytes returns how much this user can still write beside path.
func freeBytes(path string) (int64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return int64(s.Bavail) * int64(s.Bsize), nil //nolint:unconvert // their types differ between systems
}
