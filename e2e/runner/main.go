// SPDX-License-Identifier: MIT

// Command runner is the runner of the end-to-end tests: the listener of
// github-act-runner, a client that this project did not write, with a small
// worker of ours that executes a job's script steps, and before them the script
// that ACTIONS_RUNNER_HOOK_JOB_STARTED names, as the official runner does. It is started like the
// official listener: "run" as argument, the JIT config in the environment. It
// evaluates no expressions and runs no actions.
package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/ChristopherHX/github-act-runner/actionsrunner"
	"github.com/ChristopherHX/github-act-runner/runnerconfiguration/compat"
)

const (
	client   = "github.com/ChristopherHX/github-act-runner"
	jitInput = "ACTIONS_RUNNER_INPUT_JITCONFIG"

	hookVariable = "ACTIONS_RUNNER_HOOK_JOB_STARTED"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout))
}

// run returns the exit code: 0 when the job was reported, whatever its result,
// or the listener was ended; 1 when there is nothing to listen to.
func run(args []string, stdout io.Writer) int {
	switch strings.Join(args, " ") {
	case "--version":
		fmt.Fprintln(stdout, "github-act-runner", version())
		return 0
	case "run":
	default:
		fmt.Fprintln(stdout, `usage: runner run, with the JIT config in `+jitInput+`; or runner --version`)
		return 1
	}
	settings, err := compat.ParseJitRunnerConfig(os.Getenv(jitInput))
	if err != nil {
		fmt.Fprintf(stdout, "the JIT config in %s cannot be used: %v\n", jitInput, err)
		return 1
	}
	environ, hook := jobEnviron(), os.Getenv(hookVariable)

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener := actionsrunner.RunRunner{Version: version(), Settings: settings}
	// A signal cancels the core context alone: an idle listener leaves at once,
	// and a job is canceled and reported. The library's own way to drain first
	// has a data race.
	if err := listener.Run(worker{ConsoleLogger: &actionsrunner.ConsoleLogger{}, environ: environ, hook: hook}, context.Background(), ctx); err != nil {
		fmt.Fprintln(stdout, "error:", err)
		return 1
	}
	return 0
}

// jobEnviron is what steps inherit: everything but the listener's own arguments.
func jobEnviron() []string {
	var kept []string
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "ACTIONS_RUNNER_") {
			kept = append(kept, kv)
		}
	}
	return kept
}

// version is that of the client's module.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == client {
				return m.Version
			}
		}
	}
	return "(unknown)"
}

// worker is what the listener needs of us. It remembers nothing between starts:
// an ephemeral runner has nothing to come back to.
type worker struct {
	*actionsrunner.ConsoleLogger
	environ []string
	hook    string // "" if there is none
}

func (worker) ReadJSON(string, any) error  { return fs.ErrNotExist }
func (worker) WriteJSON(string, any) error { return nil }
func (worker) Remove(string) error         { return nil }
