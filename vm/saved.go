// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/internal/flock"
)

// What lies in the folder of a saved state. The two belong together: a state that is
// continued on disks that ran on destroys them, and nobody checks that.
const (
	DirState = "state" // memory and devices, in the backend's own terms
	DirDisks = "disks" // clones of all that the machine's image brought, taken while it was paused
)

// How long a vmm takes for a save at the most. The machine stands still meanwhile.
const (
	SaveTime     = 3 * time.Minute  // to write its state and to clone its disks
	ContinueTime = 30 * time.Second // to pause it, and again to have it run on
)

// SaveRequest asks a vmm to save its machine.
type SaveRequest struct {
	// Dir is the absolute path of a folder outside the bundle that exists, is empty, and
	// belongs to this user alone. After an error it is empty again.
	Dir string `json:"dir"`
	// AllowCopy has disks copied where copy-on-write does not work.
	AllowCopy bool `json:"allow_copy,omitempty"`
}

// maxSaveRequest is far more than a request with the longest path has.
const maxSaveRequest = 8 << 10

// ReadSaveRequest reads a request, strictly.
func ReadSaveRequest(r io.Reader) (SaveRequest, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSaveRequest+1))
	if err != nil {
		return SaveRequest{}, err
	}
	if len(b) > maxSaveRequest {
		return SaveRequest{}, fmt.Errorf("the request has more than %d bytes", maxSaveRequest)
	}
	var q SaveRequest
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&q); err != nil {
		return SaveRequest{}, foreign{err}
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return SaveRequest{}, errors.New("something follows the request")
	}
	if err := checkSavedPath(q.Dir); err != nil {
		return SaveRequest{}, fmt.Errorf("dir: %w", err)
	}
	return q, nil
}

// checkSavedPath checks the path of a saved state's folder as text.
func checkSavedPath(path string) error {
	switch {
	case len(path) > MaxSavedPath:
		return fmt.Errorf("the path has %d bytes: %d are allowed", len(path), MaxSavedPath)
	case !filepath.IsAbs(path) || filepath.Clean(path) != path || !utf8.ValidString(path) || strings.ContainsRune(path, 0):
		return fmt.Errorf("the path is %.200q: give the absolute path of a folder, in its shortest form", path)
	}
	return nil
}

// Save has the vmm save the machine into the folder dir, as SaveRequest describes it, and
// returns when the machine runs again. A machine is saved once in its life, and never when
// its guest has, or may have, a secret: that is for the caller to know. After an error dir
// is empty, and the machine runs on or ends with a reason. If ctx ends, the save is called off.
func (m *Machine) Save(ctx context.Context, dir string, mode CloneMode) error {
	_, err := m.client.save(ctx, SaveRequest{Dir: dir, AllowCopy: mode == CloneAllowCopy})
	if err != nil {
		return fmt.Errorf("save machine %s: %w", m.spec.ID, err)
	}
	return nil
}

// CloneDisks clones all that the image brought into the bundle dir, and nothing of the
// bundle's own or its backend's, into the empty folder dst. Nothing may write to the disks meanwhile.
func CloneDisks(ctx context.Context, dir, dst string, mode CloneMode) error {
	c := cloner{mode: mode, ours: true}
	return c.tree(ctx, dir, dst)
}

// OfBundle reports whether name, at the top of a bundle, is no part of its disks: it is
// the bundle's own, or a log or a socket of its backend.
func OfBundle(name string) bool {
	return reserved(name) || strings.HasSuffix(name, ".log") || strings.HasSuffix(name, ".sock")
}

// HoldSaved keeps the folder of a saved state from being deleted until release is called
// or this process ends: shared by those who read it, or for one alone who fills or deletes
// it. It does not wait: ErrLocked says that the folder is held otherwise.
func HoldSaved(dir string, alone bool) (release func(), err error) {
	how := unix.LOCK_SH
	if alone {
		how = unix.LOCK_EX
	}
	f, err := flock.Open(dir, os.O_RDONLY|unix.O_DIRECTORY, 0, how)
	if errors.Is(err, flock.ErrHeld) {
		return nil, fmt.Errorf("the saved state in %s is in use: %w", dir, ErrLocked)
	}
	if err != nil {
		return nil, err
	}
	return (&Lock{file: f}).release, nil
}

// CheckSaveDir reports whether the machine of the bundle may be saved into dir: an empty
// folder of this user alone, that is neither in the bundle nor around it.
func CheckSaveDir(bundle, dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("%s is not a folder", dir)
	case !ok || int(owner.Uid) != os.Geteuid() || info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s is not for this user alone: a machine's memory is written there", dir)
	}
	there, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	here, err := filepath.EvalSymlinks(bundle)
	if err != nil {
		return err
	}
	if inside(here, there) || inside(there, here) {
		return fmt.Errorf("%s is not apart from the bundle %s", dir, bundle)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("%s is not empty", dir)
	}
	return nil
}

// inside reports whether path is dir or lies in it.
func inside(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
