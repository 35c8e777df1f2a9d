// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// Faults that happened to others, each alone and on a virtual clock: its job is served in
// the end, within a time that is known, and nothing is left of it.
func TestGhostsOnTheClock(t *testing.T) {
	t.Parallel()
	for _, ghost := range []struct {
		name string
		plan dayPlan
		walk func(*day)
	}{
		{"the registration is removed before its runner listens (actions/runner#4726)", dayPlan{}, func(d *day) {
			d.next = []flaw{expired, expired}
			d.served(d.job(), 5*time.Minute)
		}},
		{"an assignment is lost, and the runner listens for ever (actions/runner#4617)", dayPlan{}, func(d *day) {
			d.next = []flaw{tooLate}
			d.served(d.job(), 8*time.Minute)
		}},
		{"a runner never gets online (tuist/tuist#10828)", dayPlan{}, func(d *day) {
			d.next = []flaw{noSession}
			d.served(d.job(), 10*time.Minute)
		}},
		{"a VM dies in the middle of its job (ubicloud#1678)", dayPlan{}, func(d *day) {
			d.next = []flaw{crash}
			d.ends(d.job(), 20*time.Minute, "failure")
			d.served(d.job(), 5*time.Minute)
		}},
		{"the controller dies between a registration and its record (ubicloud#692)", dayPlan{}, func(d *day) {
			job := d.job()
			d.sim.WaitRunner(d.t.Context(), d.registered(1)[0], func(githubsim.Runner) bool { return true }) //nolint:errcheck // it is there
			d.crash()
			time.Sleep(5 * time.Second)
			d.begin()
			d.served(job, 5*time.Minute)
		}},
		{"registered and answered with an error, and the list lags (github-aws-runners#4391)", dayPlan{timing: githubsim.Timing{ListLag: 2 * time.Minute}}, func(d *day) {
			d.must(d.sim.Inject(githubsim.Fault{
				Kind: githubsim.FaultTimeoutAfterSuccess, Path: "generate-jitconfig", Status: 504, Delay: 10 * time.Second, Count: 2,
			}))
			d.served(d.job(), 8*time.Minute)
		}},
		{"a runner that nobody needs takes a job in the last second, and its guest is silent (ubicloud#2957)", dayPlan{}, func(d *day) {
			d.next, d.fixed, d.foreign["office-mac"] = []flaw{deaf}, 15*time.Minute, true
			config, err := d.sim.Register("octo", "office-mac", "self-hosted", "macOS")
			d.must(err)
			l, err := d.sim.Listen(config)
			d.must(err)
			d.job()
			_, err = l.Next(d.t.Context())
			d.must(err)
			ours := d.registered(2)[1]
			_, err = d.sim.WaitRunner(d.t.Context(), ours, func(r githubsim.Runner) bool { return r.Status == "online" })
			d.must(err)
			d.must(l.Take()) // the runner that was made for it is one too many
			for _, f := range []githubsim.Fault{
				{Kind: githubsim.DeliveryLost}, {Kind: githubsim.FaultStatus, Path: "/actions/jobs/"}, {Kind: githubsim.FaultStatus, Path: "/actions/runs"},
			} {
				f.Count = -1
				time.Sleep(time.Second)
				d.must(d.sim.Inject(f))
			}
			d.must(l.Finish("succeeded"))
			l.Close()
			d.ends(d.job(), 20*time.Minute, "success")
		}},
		{"the installation is suspended, and resumed", dayPlan{}, func(d *day) {
			d.must(d.sim.Suspend(d.installs["octo"], true))
			job := d.job()
			time.Sleep(20 * time.Minute)
			d.must(d.sim.Suspend(d.installs["octo"], false))
			d.served(job, 10*time.Minute)
		}},
		{"the host of a job is not heard of for half an hour", dayPlan{}, func(d *day) {
			d.fixed = 10 * time.Minute
			job := d.job()
			d.started(job, 2*time.Minute)
			d.minis[0].cut(30 * time.Minute)
			d.ends(job, time.Second, "success")
			d.served(d.job(), 5*time.Minute)
		}},
		{"GitHub is away for half an hour", dayPlan{}, func(d *day) {
			d.must(d.sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: 503, Count: -1}))
			d.must(d.sim.Inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Count: -1}))
			job := d.job()
			time.Sleep(25 * time.Minute)
			d.sim.ClearFaults()
			d.served(job, 8*time.Minute)
		}},
		{"somebody else's runner takes the job (tuist/tuist#11862)", dayPlan{}, func(d *day) {
			d.fixed = 30 * time.Second
			config, err := d.sim.Register("octo", "office-mac", "self-hosted", "macOS")
			d.must(err)
			d.foreign["office-mac"] = true
			l, err := d.sim.Listen(config)
			d.must(err)
			job := d.job()
			_, err = l.Next(d.t.Context())
			d.must(err)
			d.must(l.Take())
			d.must(l.Work(d.t.Context(), time.Minute))
			d.must(l.Finish("succeeded"))
			l.Close()
			d.ends(job, time.Second, "success")
		}},
	} {
		t.Run(ghost.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				plan := ghost.plan
				plan.seed, plan.hosts, plan.slots, plan.kind = 1, 1, 2, true
				d := newDay(t, plan)
				defer d.close()
				d.fixed = time.Minute
				ghost.walk(d)
				d.rest()
				d.hold()
			})
		})
	}
}

// job queues one.
func (d *day) job() int64 {
	d.t.Helper()
	run, err := d.sim.QueueRun(githubsim.Workflow{Repo: "octo/web", Jobs: []githubsim.JobSpec{{Name: "build", Labels: []string{"self-hosted", "macOS"}}}})
	d.must(err)
	return run.JobIDs[0]
}

func (d *day) await(id int64, within time.Duration, what string, ok func(githubsim.Job) bool) {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), within)
	defer cancel()
	if j, err := d.sim.WaitJob(ctx, id, ok); err != nil {
		var k dayJob
		list, _ := all[dayJob](d, "jobs", map[string][]string{})
		if i := slices.IndexFunc(list, func(x dayJob) bool { return x.ID == id }); i >= 0 {
			k = list[i]
		}
		d.broken("job %d is not %s within %s: it is %s %s at GitHub and %s in the books (%s: %s)", id, what, within, j.Status, j.Conclusion, k.State, k.Wait.Code, k.Wait.Reason)
	}
}

func (d *day) started(id int64, within time.Duration) {
	d.t.Helper()
	d.await(id, within, "started", func(j githubsim.Job) bool { return !j.StartedAt.IsZero() })
}

func (d *day) ends(id int64, within time.Duration, conclusion string) {
	d.t.Helper()
	d.await(id, within, conclusion, func(j githubsim.Job) bool { return j.Conclusion == conclusion })
}

// served waits until a job has begun in time, and until it has ended well.
func (d *day) served(id int64, within time.Duration) {
	d.t.Helper()
	d.started(id, within)
	d.ends(id, d.fixed+time.Minute, "success")
}

// registered waits until there are so many registrations, and names them.
func (d *day) registered(n int) []string {
	for at := uint64(0); ; {
		var names []string
		for _, r := range d.sim.Runners() {
			names = append(names, r.Name)
		}
		if len(names) >= n {
			return names
		}
		var err error
		at, err = d.sim.Wait(d.t.Context(), at)
		d.must(err)
	}
}

// expire removes the registration of a config.
func (d *day) expire(config secret.Text) {
	if name := agentNameOf(config); name != "" {
		for _, r := range d.sim.Runners() {
			if r.Name == name {
				d.must(d.sim.RemoveRunner(r.ID))
			}
		}
	}
}
