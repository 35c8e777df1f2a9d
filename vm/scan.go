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
	"time"
)

// Condition says what is to be done with something that Scan found.
type Condition string

// The conditions.
const (
	Running    Condition = "running"    // locked, its vmm lives: Adopt
	Orphaned   Condition = "orphaned"   // locked, its vmm is dead: EndWriter, then Remove
	Ended      Condition = "ended"      // not locked: Remove
	Unfinished Condition = "unfinished" // half made or half deleted: Remove
)

// Found is something in the folder of all bundles.
type Found struct {
	ID        string // "" if Unfinished
	Dir       string
	Condition Condition
	// Spec is the machine's spec; if it cannot be read SpecErr says why. A machine without
	// a readable spec can still be ended and removed.
	Spec    Spec
	SpecErr error
	// State is the last state in the bundle's status file, for Ended the final one.
	State State
}

// Scan looks through the folder of all bundles, as an agent does when it starts. It
// leaves alone what does not look like a bundle, and what another process of this
// package is just making or deleting. The order is that of the names.
func Scan(ctx context.Context, vmsDir string) ([]Found, error) {
	entries, err := os.ReadDir(vmsDir)
	if err != nil {
		return nil, fmt.Errorf("scan bundles: %w", err)
	}
	var found []Found
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		f, ok, err := look(ctx, filepath.Join(vmsDir, e.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // deleted since the folder was read
		}
		if err != nil {
			return nil, fmt.Errorf("scan bundles: %w", err)
		}
		if ok {
			found = append(found, f)
		}
	}
	return found, nil
}

func look(ctx context.Context, dir string) (f Found, ok bool, err error) {
	name := filepath.Base(dir)
	if strings.HasPrefix(name, prefixNew) || strings.HasPrefix(name, prefixTrash) {
		locked, err := IsLocked(dir)
		return Found{Dir: dir, Condition: Unfinished}, err == nil && !locked, err
	}
	if ValidateID(name) != nil || !looksLikeBundle(dir) {
		return Found{}, false, nil
	}
	f = Found{ID: name, Dir: dir}
	f.Spec, f.SpecErr = ReadSpec(dir)
	locked, vmm, err := holderOf(ctx, dir)
	if err != nil {
		return Found{}, false, err
	}
	switch {
	case !locked:
		f.Condition, f.State = Ended, endOf(dir)
		return f, true, nil
	case vmm.Alive():
		f.Condition = Running
	default:
		f.Condition = Orphaned
	}
	if states, _ := ReadStatus(dir); len(states) > 0 {
		f.State = states[len(states)-1]
	}
	return f, true, nil
}

// looksLikeBundle keeps an operator's own folder from being taken for a machine.
func looksLikeBundle(dir string) bool {
	for _, name := range []string{FileLock, FileSpec} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// identityWait is how long the holder of a lock has to note in the bundle who it is.
const identityWait = 2 * time.Second

// holderOf tells whether the lock of dir is held, and by which vmm: the zero identity,
// which is not alive, if the bundle does not say.
func holderOf(ctx context.Context, dir string) (locked bool, vmm ProcessID, err error) {
	ctx, cancel := context.WithTimeout(ctx, identityWait)
	defer cancel()
	for wait := newBackoff(time.Millisecond, 50*time.Millisecond); ; {
		locked, err = IsLocked(dir)
		if err != nil || !locked {
			return false, ProcessID{}, err
		}
		vmm, err = ReadIdentity(dir, FileVMM)
		if err == nil {
			return true, vmm, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return true, ProcessID{}, nil // unreadable: nobody who can be recognised
		}
		// A vmm takes the lock first and leaves its name second.
		if !wait.sleep(ctx) {
			return true, ProcessID{}, nil
		}
	}
}
