// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// begun are so many registrations that were begun at a moment.
func begun(n int, at time.Time) fleet.MintUse {
	return fleet.MintUse{Begun: slices.Repeat([]time.Time{at}, n)}
}

// snap builds a snapshot in few words.
type snap struct{ autoscaler.Snapshot }

func newSnap() *snap {
	return &snap{autoscaler.Snapshot{
		Now: now,
		State: fleet.State{
			Pools: map[string]fleet.PoolHealth{}, Mints: map[string]fleet.MintUse{}, Rollouts: map[string]fleet.Rollout{},
		},
		Rules:    autoscaler.Rules{HostDeadline: time.Minute},
		Verdicts: map[fleet.JobID]fleet.Verdict{},
		Fresh:    autoscaler.Fresh{Demand: true, Hosts: true},
	}}
}

// pool adds a pool of the organization acme with the labels.
func (s *snap) pool(name string, labels []string, edit ...func(*fleet.Pool)) {
	p := fleet.Pool{Name: name, Labels: fleet.NewLabels(labels...), LabelNames: labels, Scopes: []fleet.Scope{{Owner: "Acme"}}, Image: "sonoma"}
	for _, e := range edit {
		e(&p)
	}
	s.Pools = append(s.Pools, p)
}

// host adds a live host with the image in its cache.
func (s *snap) host(name string, slots int, edit ...func(*fleet.Host)) {
	h := fleet.Host{ID: fleet.HostID("h-" + name), Name: name, Slots: slots, Backends: []string{"process"}, Images: []string{"sonoma"}, SeenAt: now}
	for _, e := range edit {
		e(&h)
	}
	s.State.Hosts = append(s.State.Hosts, h)
}

// runner adds a runner of the pool on the host in a phase that began just now.
func (s *snap) runner(id, pool, host string, phase fleet.Phase, edit ...func(*fleet.Runner)) {
	r := fleet.Runner{
		ID: fleet.RunnerID(id), Pool: pool, Host: fleet.HostID("h-" + host), Wanted: fleet.WantUp, HoldsSlot: true,
		Since: now, MovedAt: now, CreatedAt: now, Version: int64(len(s.State.Runners) + 1),
	}
	arm := func() {
		r.Wanted, r.Scope, r.ArmedAt = fleet.WantArmed, fleet.Scope{Owner: "Acme"}, now
	}
	mint := func() {
		arm()
		r.Registration, r.RunnerName, r.GitHubID, r.Attempt = fleet.RegMinted, "mf-"+id, 1, 1
		r.HasConfig = true
	}
	switch phase {
	case fleet.PhasePlaced:
	case fleet.PhasePreparing, fleet.PhaseBooting, fleet.PhaseStandby:
		r.Observed = fleet.Observed(phase)
	case fleet.PhaseArmed:
		arm()
		r.Observed = fleet.ObservedStandby
	case fleet.PhaseRegistering, fleet.PhaseIdle, fleet.PhaseBusy, fleet.PhaseFinished:
		mint()
		r.Observed = fleet.Observed(phase)
	case fleet.PhaseFailed:
		r.Observed, r.Failure = fleet.ObservedFailed, "broke"
	case fleet.PhaseDestroying:
		r.Observed, r.Wanted = fleet.ObservedDestroying, fleet.WantGone
	case fleet.PhaseGone:
		mint()
		r.Observed, r.HoldsSlot = fleet.ObservedGone, false
	default:
		panic(phase)
	}
	for _, e := range edit {
		e(&r)
	}
	s.State.Runners = append(s.State.Runners, r)
}

// job adds a queued job of a repository of acme; jobs are added oldest first.
func (s *snap) job(id int, repo string, labels ...string) {
	s.State.Jobs = append(s.State.Jobs, fleet.Job{
		ID: fleet.JobID(id), Owner: "acme", Repo: repo, Name: fmt.Sprint("job", id), Labels: fleet.NewLabels(labels...), State: fleet.JobQueued,
		QueuedAt: now.Add(-time.Hour + time.Duration(len(s.State.Jobs))*time.Second),
	})
}

func (s *snap) decide() fleet.Plan { return autoscaler.Decide(s.Snapshot) }

func aged(d time.Duration) func(*fleet.Runner) {
	return func(r *fleet.Runner) {
		r.Since, r.MovedAt = now.Add(-d), now.Add(-d)
		if !r.ArmedAt.IsZero() {
			r.ArmedAt = now.Add(-d)
		}
	}
}

// waitOf returns the one reason for which the job waits.
func waitOf(t *testing.T, p fleet.Plan, id int) fleet.Wait {
	t.Helper()
	var found []fleet.Wait
	for _, w := range p.Waits {
		if w.Job == fleet.JobID(id) {
			found = append(found, w)
		}
	}
	if len(found) != 1 {
		t.Fatalf("job %d has %d reasons: %+v", id, len(found), found)
	}
	return found[0]
}

// brief writes a plan as one line an action, sorted: what a case expects.
func brief(p fleet.Plan) []string {
	var out []string
	for _, a := range p.Places {
		out = append(out, fmt.Sprintf("place %s on %s", a.Pool, a.Host))
	}
	for _, a := range p.Arms {
		out = append(out, fmt.Sprintf("arm %s for %s", a.Runner, a.Scope))
	}
	for _, a := range p.Disarms {
		out = append(out, "disarm "+string(a.Runner))
	}
	for _, a := range p.Retires {
		kind := "retire "
		if a.Drain {
			kind = "drain "
		}
		if a.Failure {
			kind = "failed, " + kind
		}
		out = append(out, kind+string(a.Runner))
	}
	for _, a := range p.Deletes {
		out = append(out, "delete "+string(a.Runner))
	}
	for _, a := range p.Rollouts {
		out = append(out, fmt.Sprintf("%s %s", a.Act, a.Pool))
	}
	for _, a := range p.Fetches {
		line := fmt.Sprintf("cache of %s:", a.Host)
		for _, i := range a.Images {
			line += " " + fleet.ImageShort(i.Image)[:5]
			if i.Hold {
				line += " held"
			}
			if i.BytesPerSecond > 0 {
				line += fmt.Sprintf(" at %d", i.BytesPerSecond)
			}
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return out
}

// trouble keeps every pool from registering a runner in any of its scopes.
func (s *snap) trouble(t fleet.Trouble) {
	s.Troubles = map[fleet.PoolScope]fleet.Trouble{}
	for _, p := range s.Pools {
		for _, scope := range p.Scopes {
			s.Troubles[fleet.PoolScope{Pool: p.Name, Scope: scope.Key()}] = t
		}
	}
}
