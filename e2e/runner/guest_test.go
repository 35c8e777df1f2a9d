// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// startGuest serves a guest program with this runner as its listener.
func startGuest(t *testing.T) *guest.Client {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(dir, "bin", "Runner.Listener")); err != nil {
		t.Fatal(err)
	}
	agent, err := guest.New(guest.Config{RunnerDir: dir, Environ: os.Environ(), Env: map[string]string{asRunner: "1", "GORACE": "atexit_sleep_ms=0"}})
	if err != nil {
		t.Fatal(err)
	}
	sockets, err := os.MkdirTemp("", "mf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(sockets) })
	l, err := net.Listen("unix", filepath.Join(sockets, "guest.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	served := make(chan error, 1)
	go func() { served <- agent.Serve(ctx, l) }()
	c := guest.NewClient(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", l.Addr().String())
	})
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

func untilPhase(t *testing.T, c *guest.Client, want guest.Phase) guest.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var s guest.Status
	for s.Phase != want {
		var err error
		if s, err = c.Status(ctx, s.Revision, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// The guest program reads this client's output as it reads the official one's.
func TestUnderTheGuestProgram(t *testing.T) {
	eachFlow(t, func(t *testing.T, g *github) {
		for name, tt := range map[string]struct {
			script string
			result guest.Result
		}{
			"succeeds": {"echo fine", guest.ResultSucceeded},
			"fails":    {"exit 3", guest.ResultFailed},
		} {
			t.Run(name, func(t *testing.T) {
				c := startGuest(t)
				if err := c.Run(t.Context(), secret.New(g.register("vm "+name)), nil, nil); err != nil {
					t.Fatal(err)
				}
				untilPhase(t, c, guest.PhaseIdle)
				id := g.queue(githubsim.JobSpec{Steps: []githubsim.Step{{Run: tt.script}}})
				s := untilPhase(t, c, guest.PhaseFinished)
				r := s.Runner
				if r.Outcome != guest.OutcomeJob || r.Result != tt.result || r.BusyAt.IsZero() {
					t.Errorf("runner: %+v", r)
				}
				if _, err := g.WaitJob(t.Context(), id, githubsim.Job.Done); err != nil {
					t.Error(err)
				}
			})
		}
		for name, tt := range map[string]struct {
			head   string
			result guest.Result
		}{
			"is asked and runs its job":  {"octo/demo", guest.ResultSucceeded},
			"is asked and ends a fork's": {"eve/demo", guest.ResultCanceled},
		} {
			t.Run(name, func(t *testing.T) {
				c := startGuest(t)
				if err := c.Run(t.Context(), secret.New(g.register("vm "+name)), nil, &trust.Policy{}); err != nil {
					t.Fatal(err)
				}
				untilPhase(t, c, guest.PhaseIdle)
				run, err := g.QueueRun(githubsim.Workflow{
					Repo: "octo/demo", Event: "pull_request", HeadRepo: tt.head, Actor: "eve",
					Jobs: []githubsim.JobSpec{{Name: "build", Labels: []string{"mini"}, Steps: []githubsim.Step{{Run: "echo step was run"}}, Env: map[string]string{"GITHUB_REPOSITORY": "octo/other", "BASH_ENV": "$(exit 1)"}}},
				})
				if err != nil {
					t.Fatal(err)
				}
				r := untilPhase(t, c, guest.PhaseFinished).Runner
				if r.Result != tt.result || r.Job.Repository != "octo/demo" || r.Job.Run != run.ID || r.Job.Unasked || (r.Job.Refused != "") != (tt.result == guest.ResultCanceled) {
					t.Errorf("runner: %+v", r)
				}
				j, err := g.WaitJob(t.Context(), run.JobIDs[0], githubsim.Job.Done)
				if err != nil || strings.Contains(j.Logs, "step was run") != (r.Job.Refused == "") || !strings.Contains(j.Logs, r.Job.Refused) {
					t.Errorf("%v, log:\n%s", err, j.Logs)
				}
			})
		}
		t.Run("is ended while idle", func(t *testing.T) {
			c := startGuest(t)
			if err := c.Run(t.Context(), secret.New(g.register("vm idle")), nil, nil); err != nil {
				t.Fatal(err)
			}
			untilPhase(t, c, guest.PhaseIdle)
			if err := c.End(t.Context(), patience); err != nil {
				t.Fatal(err)
			}
			if r := untilPhase(t, c, guest.PhaseFinished).Runner; r.Outcome != guest.OutcomeEnded || *r.ExitCode != 0 {
				t.Errorf("runner: %+v", r)
			}
		})
		t.Run("is ended in its job", func(t *testing.T) {
			c := startGuest(t)
			if err := c.Run(t.Context(), secret.New(g.register("vm busy")), nil, nil); err != nil {
				t.Fatal(err)
			}
			g.queue(githubsim.JobSpec{Steps: []githubsim.Step{{Run: "sleep 100000"}}})
			untilPhase(t, c, guest.PhaseBusy)
			if err := c.End(t.Context(), patience); err != nil {
				t.Fatal(err)
			}
			if r := untilPhase(t, c, guest.PhaseFinished).Runner; r.Outcome != guest.OutcomeJob || r.Result != guest.ResultCanceled {
				t.Errorf("runner: %+v", r)
			}
		})
	})
}
