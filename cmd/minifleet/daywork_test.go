// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// every calls f at random times, on average once in a period, until ctx ends. Each
// call is a goroutine's own.
func (d *day) every(ctx context.Context, what string, period time.Duration, f func(r *rand.Rand)) {
	r := d.random(what)
	d.busy.Go(func() {
		for pauseFor(ctx, time.Duration(r.ExpFloat64()*float64(period))) {
			own := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
			d.busy.Go(func() { f(own) })
		}
	})
}

// work lets people push to their repositories.
func (d *day) work(ctx context.Context) {
	d.every(ctx, "pushes", 2*time.Hour/time.Duration(d.jobs), func(r *rand.Rand) { d.push(ctx, r) })
	d.every(ctx, "matrices", 4*time.Hour, func(r *rand.Rand) { d.queue(r, 20+r.IntN(20), func(*githubsim.JobSpec) {}) })
	d.every(ctx, "thieves", 40*time.Minute, func(r *rand.Rand) { d.steal(ctx, r) })
	d.every(ctx, "looks", 7*time.Minute, func(*rand.Rand) { d.look() })
}

// queue starts a run of some jobs.
func (d *day) queue(r *rand.Rand, jobs int, change func(*githubsim.JobSpec)) githubsim.Run {
	repos := []string{"octo/web", "octo/api", "octo/ios", "acme/tool", "acme/lib", "kim/app"}
	w := githubsim.Workflow{Repo: repos[r.IntN(len(repos))]}
	for n := range jobs {
		labels := []string{"self-hosted", "macOS"}
		if strings.HasPrefix(w.Repo, "octo/") && r.Float64() < 0.1 {
			labels = append(labels, "big")
		}
		spec := githubsim.JobSpec{Name: fmt.Sprintf("job-%d", n+1), Labels: labels}
		change(&spec)
		w.Jobs = append(w.Jobs, spec)
	}
	run, err := d.sim.QueueRun(w)
	if err != nil {
		d.broken("queue a run: %v", err)
	}
	d.count("jobs asked for", jobs)
	return run
}

// push starts a run, and does with it what people do.
func (d *day) push(ctx context.Context, r *rand.Rand) {
	change := func(*githubsim.JobSpec) {}
	after := func(githubsim.Run) {}
	switch p := r.Float64(); {
	case p < 0.04: // waits for an approval
		change = func(j *githubsim.JobSpec) { j.Gated = true }
		after = func(run githubsim.Run) {
			pauseFor(ctx, between(r, time.Second, 30*time.Minute))
			for _, id := range run.JobIDs {
				if r.Float64() < 0.2 || ctx.Err() != nil {
					d.sim.CancelJob(id) //nolint:errcheck // a run that is over cannot be
				} else if err := d.sim.Approve(id); err != nil {
					d.broken("%v", err)
				}
			}
		}
	case p < 0.07:
		change = func(j *githubsim.JobSpec) { j.Skipped = true }
	case p < 0.075: // nobody serves this
		change = func(j *githubsim.JobSpec) { j.Labels = []string{"self-hosted", "windows"} }
	case p < 0.16: // is cancelled: waiting, while its runner comes, or at work
		after = func(run githubsim.Run) {
			pauseFor(ctx, between(r, 0, []time.Duration{2 * time.Second, time.Minute, 10 * time.Minute}[r.IntN(3)]))
			d.sim.CancelRun(run.ID) //nolint:errcheck // it may be over
			d.count(cancelled, 1)
		}
	case p < 0.40: // runs again if it fails, which nobody notices at once
		after = func(run githubsim.Run) {
			if pauseFor(ctx, between(r, 5*time.Minute, 40*time.Minute)) {
				if _, err := d.sim.Rerun(run.ID, 0); err == nil {
					d.count(rerun, 1)
				}
			}
		}
	}
	after(d.queue(r, 1+r.IntN(3), change))
}

// steal lets a runner of somebody else's take a job that ours are made for.
func (d *day) steal(ctx context.Context, r *rand.Rand) {
	at := []string{"octo", "acme", "kim/app"}[r.IntN(3)]
	name := fmt.Sprintf("office-mac-%d", r.Uint32())
	d.mu.Lock()
	d.foreign[name] = true
	d.mu.Unlock()
	config, err := d.sim.Register(at, name, "self-hosted", "macOS", "ARM64", "big")
	if err != nil {
		d.broken("%v", err)
		return
	}
	l, err := d.sim.Listen(config)
	if err != nil {
		d.broken("%v", err)
		return
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	defer cancel()
	job, err := l.Next(ctx)
	if err != nil {
		return
	}
	if !pauseFor(context.Background(), time.Second) || l.Take() != nil {
		return
	}
	d.count(stolen, 1)
	takes, result := d.script(job.ID)
	if l.Work(context.Background(), takes) != nil {
		result = "canceled"
	}
	l.Finish(result) //nolint:errcheck // GitHub may have ended it
}

// trouble lets things go wrong.
func (d *day) trouble(ctx context.Context) {
	d.weather(nil)
	d.busy.Go(func() { d.storms(ctx, d.random("storms")) })
	d.busy.Go(func() { d.controllers(ctx, d.random("controllers")) })
	d.busy.Go(func() { d.suspensions(ctx, d.random("suspensions")) })
	d.every(ctx, "removals", min(2*time.Hour, d.length/4), func(r *rand.Rand) { d.removeIdle(ctx, r) })
	woes := newDeck(d.random("woes"), map[string]int{restarted: 7, cutShort: 7, cutLong: 3, powerless: 3})
	for _, h := range d.minis {
		d.busy.Go(func() { h.suffer(ctx, d.random(h.name), woes) })
	}
}

// suspensions lets accounts suspend the App for a while.
func (d *day) suspensions(ctx context.Context, r *rand.Rand) {
	for pauseFor(ctx, between(r, d.length/6, d.length/3)) {
		account := []string{"octo", "acme", "kim"}[r.IntN(3)]
		d.must(d.sim.Suspend(d.installs[account], true))
		d.count(suspended, 1)
		pauseFor(ctx, between(r, time.Minute, 25*time.Minute))
		d.must(d.sim.Suspend(d.installs[account], false))
	}
}

// suffer is one host's day, one trouble after another.
func (h *dayHost) suffer(ctx context.Context, r *rand.Rand, woes *deck[string]) {
	for pauseFor(ctx, time.Duration(r.ExpFloat64()*float64(2*time.Hour))) {
		what := woes.deal()
		h.day.count(what, 1)
		switch what {
		case restarted:
			h.restart(r.Float64() < 0.5, between(r, 0, 90*time.Second))
		case cutShort:
			h.cut(between(r, time.Second, 12*time.Minute))
		case cutLong:
			h.cut(between(r, 20*time.Minute, 3*time.Hour))
		case powerless:
			h.blackout(between(r, 2*time.Minute, 40*time.Minute))
		}
	}
}

// weather sets how GitHub misbehaves: as always, and something before that.
func (d *day) weather(worse []githubsim.Fault) {
	d.sim.ClearFaults()
	always := []githubsim.Fault{
		{Kind: githubsim.FaultStatus, Status: http.StatusBadGateway, Rate: 0.01},
		{Kind: githubsim.FaultStatus, Status: http.StatusServiceUnavailable, Rate: 0.005},
		{Kind: githubsim.FaultRetryAfter, Delay: 20 * time.Second, Rate: 0.003},
		{Kind: githubsim.FaultTimeoutAfterSuccess, Rate: 0.005},
		{Kind: githubsim.FaultTimeoutAfterSuccess, Delay: 10 * time.Second, Status: http.StatusGatewayTimeout, Rate: 0.005},
		{Kind: githubsim.FaultTimeoutAfterSuccess, Delay: 70 * time.Second, Rate: 0.003},
		{Kind: githubsim.FaultDrop, Rate: 0.004},
		{Kind: githubsim.FaultDelay, Delay: 12 * time.Second, Rate: 0.01},
		{Kind: githubsim.DeliveryLost, Rate: 0.03},
		{Kind: githubsim.DeliveryFailed, Rate: 0.02},
		{Kind: githubsim.DeliveryLate, Delay: 5 * time.Minute, Rate: 0.04},
		{Kind: githubsim.DeliveryLate, Delay: 50 * time.Minute, Rate: 0.02},
	}
	for _, f := range slices.Concat(worse, always) {
		f.Count = -1
		d.must(d.sim.Inject(f))
	}
}

// storms is GitHub's day: one long outage, and shorter trouble around it.
func (d *day) storms(ctx context.Context, r *rand.Rand) {
	at := between(r, d.length/8, d.length/2)
	kinds := newDeck(r, map[string]int{stormOf5xx: 2, stormOf429: 2, stormOfLost: 1})
	for began := time.Now(); pauseFor(ctx, between(r, d.length/24, d.length/8)); d.weather(nil) {
		what, lasts := outage, d.length/12
		if time.Since(began) < at {
			what, lasts = kinds.deal(), between(r, time.Minute, 10*time.Minute)
		} else {
			at = d.length
		}
		d.count(what, 1)
		d.weather(map[string][]githubsim.Fault{
			outage: {
				{Kind: githubsim.FaultStatus, Status: http.StatusServiceUnavailable},
				{Kind: githubsim.DeliveryLost, Rate: 0.7},
				{Kind: githubsim.DeliveryFailed},
			},
			stormOf5xx:  {{Kind: githubsim.FaultStatus, Status: http.StatusInternalServerError, Rate: 0.5}},
			stormOf429:  {{Kind: githubsim.FaultRetryAfter, Delay: 40 * time.Second, Rate: 0.3}},
			stormOfLost: {{Kind: githubsim.DeliveryLost, Rate: 0.8}},
		}[what])
		pauseFor(ctx, lasts)
	}
}

// controllers lets the controller be restarted and killed.
func (d *day) controllers(ctx context.Context, r *rand.Rand) {
	ends := newDeck(r, map[string]int{ended: 1, killed: 1})
	for pauseFor(ctx, time.Duration((0.3+r.Float64())*float64(min(d.length/5, 3*time.Hour)))) {
		what := ends.deal()
		if d.count(what, 1); what == ended {
			d.end()
		} else {
			d.crash()
		}
		time.Sleep(between(r, time.Second, []time.Duration{10 * time.Second, 2 * time.Minute, 15 * time.Minute}[r.IntN(3)]))
		d.begin()
	}
}

// removeIdle lets GitHub remove the next registration that listens (actions/runner#4726).
func (d *day) removeIdle(ctx context.Context, r *rand.Rand) {
	for pauseFor(ctx, between(r, time.Second, 5*time.Second)) {
		idle := map[string]bool{}
		for _, h := range d.minis {
			for _, name := range h.idle() {
				idle[name] = true
			}
		}
		if len(idle) == 0 {
			continue
		}
		for _, x := range d.sim.Runners() {
			if idle[x.Name] && x.JobID == 0 && d.sim.RemoveRunner(x.ID) == nil {
				d.count(removed, 1)
				return
			}
		}
	}
}
