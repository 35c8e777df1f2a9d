// SPDX-License-Identifier: MIT

package crashpoint

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Variable is the environment variable that names the folder in which a test arms
// points. A point has a folder in it, with a file for each time that it is passed
// unharmed and one for the time that kills. Whoever takes a file away has reached the
// point: that is decided once, however many processes come at the same moment.
const Variable = "MINIFLEET_CRASHPOINTS"

const (
	fileArmed    = "armed"
	prefixPass   = "pass-"
	prefixKilled = "killed-" // and the pid
)

// Arm has the next process that reaches the point die there, after the point was
// reached so many times by any. A point is armed once.
func Arm(dir string, p Point, passes int) error {
	at := filepath.Join(dir, p.String())
	if err := os.Mkdir(at+".new", 0o700); err != nil {
		return fmt.Errorf("arm %s: %w", p, err)
	}
	names := []string{fileArmed}
	for i := range passes {
		names = append(names, prefixPass+strconv.Itoa(i))
	}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(at+".new", name), nil, 0o600); err != nil {
			return fmt.Errorf("arm %s: %w", p, err)
		}
	}
	if err := os.Rename(at+".new", at); err != nil {
		return fmt.Errorf("arm %s: %w", p, err)
	}
	return nil
}

// Killed returns the process that died at the point, 0 as long as none did.
func Killed(dir string, p Point) (pid int, err error) {
	marks, err := os.ReadDir(filepath.Join(dir, p.String()))
	if err != nil {
		return 0, fmt.Errorf("point %s is not armed: %w", p, err)
	}
	for _, m := range marks {
		if text, ok := strings.CutPrefix(m.Name(), prefixKilled); ok {
			return strconv.Atoi(text)
		}
	}
	return 0, nil
}
