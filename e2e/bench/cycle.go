// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// guestGitHub is where guests in an isolated network find the simulated GitHub.
const guestGitHub = "10.0.2.100:80"

// stepOther is what of a cycle is no step of the agent's: the way of the news between
// GitHub, controller and host, the job itself, and the listener's end.
const stepOther = "else"

// measureCycle sends jobs of one step, `true`, through a whole site whose runners are VMs:
// webhook, clone, boot, registration, the runner of the image that takes the job, the end
// of the VM, its files. Each begins with nothing there, and ends so.
func measureCycle(ctx context.Context, b *bencher) error {
	const figure = "queued job to everything gone again"
	if why := b.noMachines(); why != "" {
		b.skip(figure, "", why)
		return nil
	}
	s, err := newSite(ctx, b, siteOf{
		name: "cycle", github: []string{"--runner-url", "http://" + guestGitHub},
		pool: fmt.Sprintf("image: %s, backend: qemu, cpus: %d, memory_mib: %d, limits: {booting: 2m, registering: 2m, unnamed: 30s}", filepath.Base(b.image), machineCPUs, machineMemory),
	})
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.machineHost(ctx); err != nil {
		return err
	}
	kind := true
	if err := s.sim.SetWebhook(ctx, githubsim.Webhook{URL: s.controller.said["webhook"] + "/webhook", Kind: &kind}); err != nil {
		return err
	}
	var whole, job times
	parts, names := map[string]times{}, []string{}
	for i := range b.few(4) + 1 {
		c, err := s.cycle(ctx)
		if err != nil {
			return s.failed(err)
		}
		if i == 0 {
			continue // it has found out about the accelerator
		}
		whole, job = append(whole, c.whole), append(job, c.job)
		rest := c.whole
		for _, step := range c.steps {
			if _, ok := parts[step.Step]; !ok {
				names = append(names, step.Step)
			}
			took := time.Duration(step.Microseconds) * time.Microsecond
			parts[step.Step] = append(parts[step.Step], took)
			rest -= took
		}
		parts[stepOther] = append(parts[stepOther], rest)
	}
	b.note(figure, fmt.Sprintf("p50 %s, max %s, n %d", short(whole.at(0.5)), short(whole.at(1)), len(whole)))
	for _, name := range append(names, stepOther) {
		took := parts[name].at(0.5)
		b.note("  "+name, fmt.Sprintf("%4.1f %%  %s", 100*float64(took)/float64(whole.at(0.5)), short(took)))
	}
	b.note("  of which GitHub saw the job run", short(job.at(0.5)))
	return nil
}

// machineHost starts an agent whose runners are VMs.
func (s *site) machineHost(ctx context.Context) error {
	token, err := s.enrolment(ctx, 1)
	if err != nil {
		return err
	}
	config := filepath.Join(s.dir, "agent.yaml")
	text := fmt.Sprintf("controller: %s\nname: bench\nstate_dir: %s\nenrolment_token_file: %s\nslots: 1\nallow_copy: true\nimages_dir: %s\nbackend: qemu\nqemu: {network: isolated, forwards: [{guest: %q, host: %q}]}\n",
		s.controller.said["agents"], filepath.Join(s.dir, "a"), token, filepath.Dir(s.image), guestGitHub, strings.TrimPrefix(s.sim.BaseURL, "http://"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return err
	}
	if s.hosts, err = launch(ctx, s.dir, "agent", nil, nil, filepath.Join(s.programs, "minifleet-agent"), "run", "--config", config); err != nil {
		return err
	}
	return s.failed(s.online(ctx, 1))
}

// stepTime is one step of a runner, as the controller shows it.
type stepTime struct {
	Step         string `json:"step"`
	Microseconds int64  `json:"microseconds"`
}

// cycle is the whole way of one job.
type oneCycle struct {
	whole time.Duration
	job   time.Duration // in progress until completed, at GitHub
	steps []stepTime
}

func (s *site) cycle(ctx context.Context) (c oneCycle, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, machineTime, fmt.Errorf("a cycle is not over within %s", machineTime))
	defer cancel()
	began := time.Now()
	run, err := s.sim.QueueRun(ctx, githubsim.Workflow{Repo: owner + "/" + repo, Jobs: []githubsim.JobSpec{
		{Name: "bench", Labels: poolLabels(), Steps: []githubsim.Step{{Run: "true"}}},
	}})
	if err != nil {
		return c, err
	}
	if _, err := s.sim.WaitJob(ctx, run.JobIDs[0], "in_progress"); err != nil {
		return c, err
	}
	taken := time.Now()
	job, err := s.sim.WaitJob(ctx, run.JobIDs[0], "completed")
	if err != nil {
		return c, err
	}
	c.job = time.Since(taken)
	if job.Conclusion != "success" {
		return c, fmt.Errorf("the job's conclusion is %q", job.Conclusion)
	}
	err = until(ctx, machineTime, 5*time.Millisecond, "the runner is gone", func() (bool, error) {
		var page struct {
			Items []struct {
				Phase string     `json:"phase"`
				Job   int64      `json:"job"`
				Steps []stepTime `json:"steps"`
			} `json:"items"`
		}
		if err := s.ask(ctx, http.MethodGet, "runners?all=true&limit=1000", nil, &page); err != nil {
			return false, err
		}
		for _, r := range page.Items {
			deleted := slices.ContainsFunc(r.Steps, func(t stepTime) bool { return t.Step == "delete" })
			if r.Job == run.JobIDs[0] && r.Phase == "gone" && deleted {
				c.steps = r.Steps
				return true, nil
			}
		}
		return false, nil
	})
	c.whole = time.Since(began)
	if err == nil && len(c.steps) == 0 {
		err = errors.New("the agent has reported no steps")
	}
	return c, err
}
