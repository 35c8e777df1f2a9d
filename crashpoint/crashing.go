// SPDX-License-Identifier: MIT

//go:build crashpoints

package crashpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Reached ends this process as a power cut would, without a deferred call or a
// flushed buffer, if the point is armed in the folder that Variable names.
func Reached(p Point) {
	if dir := os.Getenv(Variable); dir == "" || !claim(dir, p) {
		return
	}
	_ = syscall.Kill(syscall.Getpid(), syscall.SIGKILL) // nobody forbids a process to end itself
	select {}                                           // it ends here and goes no step further
}

// Environ returns what the environment of a program's children needs so that they
// can be killed too.
func Environ() []string {
	dir := os.Getenv(Variable)
	if dir == "" {
		return nil
	}
	return []string{Variable + "=" + dir}
}

// claim reports whether this process has to die at the point, and leaves the mark
// that it did.
func claim(dir string, p Point) bool {
	at := filepath.Join(dir, p.String())
	files, err := os.ReadDir(at)
	if err != nil {
		return false // not armed
	}
	for _, f := range files {
		if strings.HasPrefix(f.Name(), prefixPass) && os.Remove(filepath.Join(at, f.Name())) == nil {
			return false
		}
	}
	err = os.Rename(filepath.Join(at, fileArmed), filepath.Join(at, prefixKilled+strconv.Itoa(os.Getpid())))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		panic(fmt.Sprintf("crash point %s cannot be claimed: %v", p, err)) // a test is set up wrongly
	}
	return err == nil
}
