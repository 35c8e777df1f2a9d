// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// EndLeftovers ends processes of the hypervisor that outlived their machine, and returns
// how many it ended. On a Mac a machine is a process of Apple's service, which has been
// seen to stay after its vmm was gone, and then counts as one of the two macOS guests
// that may run. Ours is one that has a file of a bundle in the folder vmsDir open while
// nothing holds the bundle's lock. On Linux there are none: a hypervisor that outlives
// its vmm holds the lock, see EndWriter. as is the user as whom the vmms run, whose those
// processes are then too; nil means this process's own.
func EndLeftovers(ctx context.Context, vmsDir string, as *Account) (ended int, err error) {
	uid := os.Getuid()
	if as != nil {
		uid = as.UID
	}
	// The system names files by their true paths.
	vmsDir, err = filepath.EvalSymlinks(vmsDir)
	if err != nil {
		return 0, fmt.Errorf("look for leftovers: %w", err)
	}
	suspects, err := hypervisorFiles(ctx, uid)
	if err != nil {
		return 0, fmt.Errorf("look for leftovers: %w", err)
	}
	var errs []error
	for pid, paths := range suspects {
		if left, err := leftOver(vmsDir, paths); err != nil || !left {
			errs = append(errs, err)
			continue
		}
		// The identity first: what is then found out is true of it, or of nobody any more.
		id, err := IdentifyProcess(pid)
		if err != nil {
			continue // it has ended
		}
		now, err := hypervisorFiles(ctx, uid)
		if err != nil {
			return ended, errors.Join(append(errs, fmt.Errorf("look for leftovers: %w", err))...)
		}
		if left, err := leftOver(vmsDir, now[pid]); err != nil || !left {
			errs = append(errs, err)
			continue
		}
		if err := id.kill(); err != nil {
			errs = append(errs, fmt.Errorf("end a leftover: %w", err))
			continue
		}
		ended++
	}
	return ended, errors.Join(errs...)
}

// leftOver reports whether one of the files is of a bundle in vmsDir, or of what was one,
// that nothing has locked.
func leftOver(vmsDir string, paths []string) (bool, error) {
	for _, path := range paths {
		rel, err := filepath.Rel(vmsDir, path)
		if err != nil || !filepath.IsLocal(rel) {
			continue
		}
		name, _, inside := strings.Cut(filepath.ToSlash(rel), "/")
		if !inside || ValidateID(name) != nil && !strings.HasPrefix(name, prefixTrash) {
			continue
		}
		locked, err := IsLocked(filepath.Join(vmsDir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		return !locked, nil
	}
	return false, nil
}

// parseOpenFiles reads what lsof writes with -Fpn: the open files of each process.
func parseOpenFiles(text []byte) map[int][]string {
	files, pid := map[int][]string{}, 0
	for line := range bytes.Lines(text) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		switch {
		case len(line) == 0:
		case line[0] == 'p':
			n, err := strconv.Atoi(string(line[1:]))
			if err != nil || n <= 1 {
				n = 0
			}
			pid = n
		case line[0] == 'n' && pid > 1:
			files[pid] = append(files[pid], string(line[1:]))
		}
	}
	return files
}
