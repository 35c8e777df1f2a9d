// SPDX-License-Identifier: MIT

package vm

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// endWriters kills the noted writer with its process group. macOS does not tell which
// processes hold a lock; a vz machine's only writer is its vmm, so this concerns the
// process backend alone.
func endWriters(dir string) error {
	w, err := ReadIdentity(dir, FileWriter)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !w.Alive() {
		return err
	}
	// Its group is its own only if it leads it.
	if pgid, err := unix.Getpgid(w.PID); err == nil && pgid == w.PID {
		if err := unix.Kill(-w.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process group %d: %w", w.PID, err)
		}
	}
	return w.kill()
}
