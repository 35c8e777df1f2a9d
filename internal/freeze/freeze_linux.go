// SPDX-License-Identifier: MIT

package freeze

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// stands reports whether all threads of a process are stopped or have ended (proc(5)).
func stands(pid int) (bool, error) {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
	if err == nil && len(tasks) == 0 {
		err = fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	for _, task := range tasks {
		stat, err := os.ReadFile(task)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH): // the thread has ended
			continue
		case err != nil:
			return false, err
		}
		_, after, found := bytes.Cut(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" "))
		if !found || bytes.IndexAny(after, "TtZXx") != 0 {
			return false, nil
		}
	}
	return err == nil, err
}
