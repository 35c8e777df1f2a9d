// SPDX-License-Identifier: MIT

// Package leakcheck ends the tests of a package with a list of what they left behind:
// goroutines, open descriptors, processes, files. Every package's TestMain goes through
// Main; nothing but tests imports it. It finds no leak within a test and cures none.
package leakcheck

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/goleak"
)

// marker tells a test binary what it is to a run that is checked already: the one that
// runs the tests, or a program that a test started, which is the tests' own affair.
const (
	marker = "MINIFLEET_LEAKCHECK"
	tests  = "tests"
	within = "within"
)

// patience is how long what was told to end may take to be gone, on a machine that is busy
// with others.
var patience = 30 * time.Second

// Main runs a package's tests and ends the process, with an error if they leave anything.
// TMPDIR is a folder of theirs alone, with a path that is short enough for sockets; what
// they write has the mode that they say, less the right of others to change it.
func Main(m interface{ Run() int }) {
	syscall.Umask(0o022)
	switch {
	case fuzzing() || os.Getenv(marker) == within:
		os.Exit(m.Run())
	case os.Getenv(marker) == tests:
		os.Setenv(marker, within)
		os.Exit(inside(m))
	}
	os.Exit(outside(m))
}

// fuzzing reports whether this is a fuzzing run: its processes speak over descriptors of
// their own, and a found input ends them in the middle.
func fuzzing() bool {
	return slices.ContainsFunc(os.Args[1:], func(arg string) bool {
		arg = strings.TrimLeft(arg, "-")
		return strings.HasPrefix(arg, "test.fuzz=") || arg == "test.fuzz" || strings.HasPrefix(arg, "test.fuzzworker")
	})
}

// outside gives the tests their folder and looks at what is left of it.
func outside(m interface{ Run() int }) int {
	dir, err := folder()
	if err != nil {
		fmt.Fprintln(os.Stderr, "leakcheck:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	os.Setenv("TMPDIR", dir)
	os.Unsetenv("GOTMPDIR") // which t.TempDir would take
	code, leaks := supervise(m)
	if left := files(dir); code == 0 && len(left) > 0 {
		leaks = append(leaks, left...)
	}
	return report(code, leaks)
}

// inside runs the tests and looks at what is left of them in this process. A failed test
// may well leave things: then that is what is to be mended first.
func inside(m interface{ Run() int }) int {
	before, running := descriptors(), goleak.IgnoreCurrent() // what a library begins when it is loaded
	code := m.Run()
	if code != 0 {
		return code
	}
	leaks := awaitNone(func() []string {
		if err := goleak.Find(running); err != nil { // it waits too, for less than half a second
			return []string{err.Error()}
		}
		return nil
	})
	for _, d := range awaitNone(func() []string { return opened(before, descriptors()) }) {
		leaks = append(leaks, "descriptor "+d)
	}
	for _, c := range awaitNone(children) {
		leaks = append(leaks, "child that nobody waits for: "+c)
	}
	return report(code, leaks)
}

// folder makes the tests' folder. The user's own may have too long a path for sockets,
// and so would one with a name like those of os.MkdirTemp: tests make folders in it, and
// the programs that they start make others in those.
func folder() (string, error) {
	for {
		dir := "/tmp/mf" + strings.ToLower(rand.Text()[:4])
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return dir, os.Chmod(dir, 0o755) // some tests run programs as another user
	}
}

func report(code int, leaks []string) int {
	for _, l := range leaks {
		fmt.Fprintln(os.Stderr, "leakcheck: left behind:", l)
	}
	if len(leaks) > 0 && code == 0 {
		return 1
	}
	return code
}

// files lists what is in the tests' folder.
func files(dir string) []string {
	var left []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && path != dir && len(left) < 20 {
			left = append(left, "file "+path)
		}
		return err
	})
	if err != nil {
		left = append(left, err.Error())
	}
	return left
}

// opened returns the descriptors that are there now and were not before. The runtime
// opens its own poller with the first descriptor that it waits for, and keeps it.
func opened(before, now map[string]string) []string {
	pollers := map[string]bool{"anon_inode:[eventpoll]": true, "anon_inode:[eventfd]": true}
	for _, target := range before {
		pollers[target] = false // it is there, and there is only one
	}
	var out []string
	for fd, target := range now {
		switch {
		case before[fd] == target:
		case pollers[target]:
			pollers[target] = false
		default:
			out = append(out, fd+" "+target)
		}
	}
	slices.Sort(out)
	return out
}

// awaitNone asks until there is nothing left, for what was told to end needs a moment,
// and returns what there still is.
func awaitNone(ask func() []string) []string {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(patience)
	for {
		left := ask()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		<-tick.C
	}
}
