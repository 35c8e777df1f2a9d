// SPDX-License-Identifier: MIT

// Package site_test runs whole sites out of the real programs, built with the race
// detector, and a runner client that is not ours: the demo and its mistakes, jobs in
// parallel, programs that are killed, frozen or doubled, hosts and databases without
// room, clocks that disagree, folders that cannot be written.
package site_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

// Where the programs are; set once by TestMain.
const (
	programsEnv = "MINIFLEET_TEST_PROGRAMS"
	runnerEnv   = "MINIFLEET_TEST_RUNNER"
	skipEnv     = "MINIFLEET_TEST_SKIP" // why there are none
)

func programs(t *testing.T) string {
	t.Helper()
	if why := os.Getenv(skipEnv); why != "" {
		t.Skip(why)
	}
	return os.Getenv(programsEnv)
}

func TestMain(m *testing.M) {
	flag.Parse()
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "test.parallel" })
	if !set {
		if err := flag.Set("test.parallel", "100"); err != nil { // they wait for room themselves
			panic(err)
		}
	}
	leakcheck.Main(withPrograms{m})
}

// withPrograms builds the programs before the tests and deletes them after them.
type withPrograms struct{ m *testing.M }

func (w withPrograms) Run() int {
	code, err := buildAndRun(w.m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

func buildAndRun(m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "mfbin")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := build(dir); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// build builds the programs with the race detector, which needs a C compiler.
func build(dir string) error {
	cc, err := exec.Command("go", "env", "CC").Output()
	if err != nil {
		return fmt.Errorf("go env CC: %w", err)
	}
	if compiler := strings.Fields(string(cc)); len(compiler) == 0 || !found(compiler[0]) {
		why := "no C compiler, which the race detector needs to build the programs"
		if os.Getenv("CI") == "true" {
			return errors.New(why)
		}
		return os.Setenv(skipEnv, why)
	}
	for _, b := range []struct {
		in      string
		args    []string
		cgo     string
		setting string
		value   string
	}{
		{filepath.Join("..", ".."), []string{"-race", "-o", dir + "/", "./cmd/minifleet", "./cmd/minifleet-agent", "./cmd/minifleet-vmm", "./cmd/minifleet-guest"}, "1", programsEnv, dir},
		// Whether a client that is not ours has races is not for us to find out.
		{"..", []string{"-o", filepath.Join(dir, "runner"), "./runner"}, "0", runnerEnv, filepath.Join(dir, "runner")},
	} {
		cmd := exec.Command("go", append([]string{"build"}, b.args...)...)
		cmd.Dir = b.in
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", strings.Join(b.args, " "), err, out)
		}
		if err := os.Setenv(b.setting, b.value); err != nil {
			return err
		}
	}
	return nil
}

func found(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}
