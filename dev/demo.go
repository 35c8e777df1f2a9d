// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// The demo's jobs. Names say what must become of them.
const (
	jobLong    = "survives-agent-restart"
	jobFails   = "fails"
	jobQueued  = "cancelled-while-queued"
	jobBooting = "cancelled-while-booting"
	jobRunning = "cancelled-while-running"
	jobSecond  = "survives-too"
	longTicks  = 40 // of 200 ms
)

// ordinaryJobs is how many more jobs there are. Each has a VM, and one that is emulated
// takes seconds to boot.
func (s *site) ordinaryJobs() int {
	if s.real() {
		return 6
	}
	return 18
}

// demoTime is far more than a demo takes, emulated processors on a busy machine included.
const demoTime = 10 * time.Minute

// patience is far more than a step of it takes on such a machine.
const patience = 3 * time.Minute

// nap is the sleep of the job that is cancelled while it runs: ten minutes, in a
// form that only processes of this site's jobs have among their arguments.
func nap() string { return fmt.Sprintf("600.%d", os.Getpid()) }

func isNap(arg string) bool { return arg == nap() }

// expected is the conclusion that a job must have.
func expected(name string) string {
	switch {
	case name == jobFails:
		return "failure"
	case strings.HasPrefix(name, "cancelled-"):
		return "cancelled"
	default:
		return "success"
	}
}

func job(name string, steps ...githubsim.Step) githubsim.JobSpec {
	return githubsim.JobSpec{Name: name, Labels: poolLabels(), Env: map[string]string{"FLEET": "minifleet", "JOB": name}, Steps: steps}
}

func step(name, script string) githubsim.Step { return githubsim.Step{Name: name, Run: script} }

// ticking prints a number every 200 ms: that none is missing proves that nothing
// interrupted it.
func ticking(name string) githubsim.JobSpec {
	return job(name,
		step("Tick", fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "tick $i of $JOB"; sleep 0.2; done`, longTicks)),
		step("Say so", `echo "$JOB ran to its end in $FLEET"`))
}

// firstRun is one job that is cancelled before anything else happens.
func firstRun() githubsim.Workflow {
	return githubsim.Workflow{Repo: owner + "/" + repo, Name: "early", Event: "push", Jobs: []githubsim.JobSpec{job(jobBooting, step("Never", "echo never"))}}
}

func mainRun(ordinary int) githubsim.Workflow {
	w := githubsim.Workflow{Repo: owner + "/" + repo, Name: "ci", Event: "push"}
	w.Jobs = append(w.Jobs, ticking(jobLong), ticking(jobSecond),
		job(jobRunning, step("Sleep with a grandchild", fmt.Sprintf(`sh -c 'sleep %[1]s & wait' & echo child; sleep %[1]s`, nap()))))
	for i := range ordinary {
		w.Jobs = append(w.Jobs, job(fmt.Sprintf("build-%02d", i+1),
			step("Prepare", `mkdir -p out && echo "$JOB in $FLEET" > out/hello`),
			githubsim.Step{Name: "Build", Env: map[string]string{"STEP": "build"}, Run: `sleep 0.3; tr a-z A-Z < out/hello; echo "$STEP done"`},
			step("Check", `test "$(cat out/hello)" = "$JOB in minifleet"`)))
		if i == ordinary/3 {
			w.Jobs = append(w.Jobs, job(jobFails, step("Good", "echo fine"), step("Bad", "echo about to fail; exit 3"), step("Skipped", "echo not reached")))
		}
	}
	w.Jobs = append(w.Jobs, job(jobQueued, step("Never", "echo never")))
	return w
}

// demo runs the workflow, does what the names of its jobs say, and accounts for
// the end.
func (s *site) demo(asked context.Context) error {
	ctx, cancel := context.WithTimeoutCause(asked, demoTime, fmt.Errorf("the demo is not over after %v", demoTime))
	defer cancel()
	began := time.Now()
	watching, stopWatching := context.WithCancel(ctx)
	var watcher errgroup.Group
	watcher.Go(func() error { return s.watch(watching, began) })
	err := s.play(ctx)
	if err == nil {
		err = s.quiet(ctx)
	}
	stopWatching()
	err = errors.Join(err, watcher.Wait())
	if asked.Err() != nil {
		return err // there is no account of half a demo
	}
	return errors.Join(err, s.summary(context.WithoutCancel(ctx), time.Since(began)))
}

func (s *site) play(ctx context.Context) error {
	if err := s.cancelWhileBooting(ctx); err != nil {
		return fmt.Errorf("%s: %w", jobBooting, err)
	}
	w := mainRun(s.ordinaryJobs())
	all, err := s.sim.QueueRun(ctx, w)
	if err != nil {
		return err
	}
	ids := map[string]int64{}
	for i, j := range w.Jobs {
		ids[j.Name] = all.JobIDs[i]
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return named(jobQueued, s.sim.CancelJob(ctx, ids[jobQueued])) })
	g.Go(func() error { return named(jobRunning, s.cancelWhileRunning(ctx, ids[jobRunning])) })
	g.Go(func() error { return named(jobLong, s.restartAgentUnder(ctx, ids[jobLong])) })
	for _, id := range all.JobIDs {
		g.Go(func() error {
			_, err := s.sim.WaitJob(ctx, id, "completed")
			return err
		})
	}
	return g.Wait()
}

func named(job string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", job, err)
	}
	return nil
}

// cancelWhileBooting queues a job and cancels it once a VM is coming for it. GitHub registers
// no runner meanwhile: on a machine that stands still for a moment the VM may have booted
// unseen, and would take the job.
func (s *site) cancelWhileBooting(ctx context.Context) error {
	if err := s.sim.Inject(ctx, githubsim.Fault{
		Kind: githubsim.FaultStatus, Status: http.StatusServiceUnavailable, Method: http.MethodPost, Path: "/generate-jitconfig", Count: -1,
	}); err != nil {
		return err
	}
	run, err := s.sim.QueueRun(ctx, firstRun())
	if err != nil {
		return err
	}
	err = s.until(ctx, patience, "a VM boots for it", func() (bool, error) {
		list, err := s.runners(ctx, false)
		return slices.ContainsFunc(list, func(r api.Runner) bool { return r.Phase != api.PhaseRequested && r.Phase != api.PhasePlaced }), err
	})
	if err != nil {
		return err
	}
	if err := s.sim.CancelJob(ctx, run.JobIDs[0]); err != nil {
		return err
	}
	return s.sim.ClearFaults(ctx)
}

// cancelWhileRunning cancels a job once its grandchild runs.
func (s *site) cancelWhileRunning(ctx context.Context, id int64) error {
	if _, err := s.sim.WaitJob(ctx, id, "in_progress"); err != nil {
		return err
	}
	if err := s.until(ctx, patience, "its sleep has begun", func() (bool, error) {
		if s.real() { // the processes are the guest's
			j, err := s.sim.Job(ctx, id)
			return len(j.Feed) > 0, err
		}
		return len(processesWith(isNap)) > 0, nil
	}); err != nil {
		return err
	}
	return s.sim.CancelJob(ctx, id)
}

// restartAgentUnder kills the agent of a running job, leaves it dead for a
// second and starts it again.
func (s *site) restartAgentUnder(ctx context.Context, id int64) error {
	j, err := s.sim.WaitJob(ctx, id, "in_progress")
	if err != nil {
		return err
	}
	var host string
	if err := s.until(ctx, patience, "its host is known", func() (bool, error) {
		host, err = s.hostOf(ctx, j.RunnerName)
		return host != "", err
	}); err != nil {
		return err
	}
	for i, a := range s.agents {
		if a.name != host {
			continue
		}
		s.say("agent of %s killed (SIGKILL) while %s runs there", host, jobLong)
		a.cmd.Process.Signal(syscall.SIGKILL) //nolint:errcheck // the wait below tells
		<-a.done
		s.agents[i] = nil
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if err := s.startAgent(ctx, i); err != nil {
			return err
		}
		s.say("agent of %s started again", host)
		return nil
	}
	return fmt.Errorf("runner %s is on host %q, which is none of ours", j.RunnerName, host)
}

// quiet waits until nothing is left of the runners: at GitHub, in the controller's
// books, on the hosts.
func (s *site) quiet(ctx context.Context) error {
	return s.until(ctx, patience, "every runner is gone", func() (bool, error) {
		left, err := s.leftovers(ctx)
		return err == nil && len(left) == 0, err
	})
}
