// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// lostInterval stands for each of the intervals, which are minutes as shipped: what a lost
// webhook costs is a moment within it, and then what any job costs.
func (b *bencher) lostInterval() time.Duration {
	if b.scale < 0.1 {
		return time.Second
	}
	return 2 * time.Second
}

// measureLost sends jobs one after the other through sites that differ in what becomes of
// the webhooks: delivered, never sent, failed, or read from GitHub because nothing listens.
// Each job is queued at a moment that no interval knows of.
func measureLost(ctx context.Context, b *bencher) error {
	if b.hour {
		b.skip("lost webhook to job running", "", "with -hour no interval is short")
		return nil
	}
	interval := b.lostInterval()
	var boot time.Duration
	for _, c := range []struct {
		figure            string
		reconcile, timing string
		github            string // further keys
		fault             githubsim.FaultKind
	}{
		{figure: "queued to job running: webhooks delivered"},
		{figure: "lost webhook to job running: never sent", reconcile: interval.String(), fault: githubsim.DeliveryLost},
		{figure: "lost webhook to job running: failed", timing: ", redelivery: " + interval.String(), fault: githubsim.DeliveryFailed},
		{figure: "queued to job running: deliveries pulled", timing: ", pull: " + interval.String(), github: ", deliveries: pull"},
	} {
		took, err := b.lost(ctx, siteOf{name: "lost", reconcile: c.reconcile, timing: c.timing, app: c.github}, c.fault)
		if err != nil {
			return err
		}
		seen := fmt.Sprintf("p50 %s, p90 %s, max %s, n %d", short(took.at(0.5)), short(took.at(0.9)), short(took.at(1)), len(took))
		if boot == 0 {
			boot = took.at(1)
			b.note(c.figure, seen)
			continue
		}
		bound := interval + boot
		b.limit(c.figure, "max < "+short(bound), seen, took.at(1) < bound)
	}
	return nil
}

// lost measures jobs on a site of their own, with all webhooks at fault if there is one.
func (b *bencher) lost(ctx context.Context, of siteOf, fault githubsim.FaultKind) (took times, err error) {
	of.name = fmt.Sprintf("%s%d", of.name, len(b.rows))
	of.pool = "image: bench, backend: process, cpus: 1, memory_mib: 256, limits: {surplus: 1s}"
	s, err := newSite(ctx, b, of)
	if err != nil {
		return nil, err
	}
	defer s.close()
	if err := s.realHost(ctx, fmt.Sprintf("'%s' standin", filepath.Join(s.programs, "minifleet"))); err != nil {
		return nil, err
	}
	kind, hook := true, s.controller.said["webhook"]
	if hook == "" {
		hook = "http://127.0.0.1:1" // where nobody is
	}
	if err := s.sim.SetWebhook(ctx, githubsim.Webhook{URL: hook + "/webhook", Kind: &kind}); err != nil {
		return nil, err
	}
	if fault != "" {
		if err := s.sim.Inject(ctx, githubsim.Fault{Kind: fault, Count: -1}); err != nil {
			return nil, err
		}
	}
	moments := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same moments each time
	for range b.few(20) {
		select {
		case <-time.After(time.Duration(moments.Int64N(int64(b.lostInterval())))):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		one, err := s.oneLost(ctx)
		if err != nil {
			return nil, s.failed(err)
		}
		took = append(took, one)
	}
	return took, nil
}

// oneLost queues a job, waits until nothing of it is left, and returns how long it took to
// run, by GitHub's clock.
func (s *site) oneLost(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("a job is not over within %s", patience))
	defer cancel()
	run, err := s.sim.QueueRun(ctx, githubsim.Workflow{Repo: owner + "/" + repo, Jobs: []githubsim.JobSpec{
		{Name: "bench", Labels: poolLabels(), Steps: []githubsim.Step{{Run: "true"}}},
	}})
	if err != nil {
		return 0, err
	}
	job, err := s.sim.WaitJob(ctx, run.JobIDs[0], "completed")
	if err != nil {
		return 0, err
	}
	if job.Conclusion != "success" {
		return 0, fmt.Errorf("the job's conclusion is %q", job.Conclusion)
	}
	_, err = s.allFree(ctx)
	return job.StartedAt.Sub(job.QueuedAt), err
}
