// SPDX-License-Identifier: MIT

// Package githubsim_test drives the simulated GitHub with a runner client that
// is not ours, and holds every answer and delivery to GitHub's own schemas.
package githubsim_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/minifleet/minifleet/internal/leakcheck"
)

const runnerEnv = "MINIFLEET_TEST_RUNNER"

func TestMain(m *testing.M) { leakcheck.Main(withRunner{m}) }

// withRunner builds the runner client once for all tests.
type withRunner struct{ m *testing.M }

func (w withRunner) Run() int { return buildAndRun(w.m) }

func buildAndRun(m *testing.M) int {
	if os.Getenv(runnerEnv) == "" {
		dir, err := os.MkdirTemp("", "minifleet-runner-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin := filepath.Join(dir, "runner")
		cmd := exec.Command("go", "build", "-o", bin, "../runner")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the runner client: %v\n%s", err, out)
			return 1
		}
		os.Setenv(runnerEnv, bin)
	}
	return m.Run()
}
