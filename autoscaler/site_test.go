// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/minifleet/minifleet/autoscaler"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// The loop over the real store: a job comes, a runner is placed, armed, registered,
// busy and gone, and a registration that is left over is deleted.
func TestLoopOverTheRealStore(t *testing.T) {
	t.Parallel()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	deleted := make(chan fleet.RegistrationRef, 10)
	loop := autoscaler.New(autoscaler.Config{
		Store: s,
		GitHub: unregister(func(_ context.Context, ref fleet.RegistrationRef) error {
			deleted <- ref
			return nil
		}),
		Pools: []fleet.Pool{{Name: "mac", Labels: fleet.NewLabels("macos"), Scopes: []fleet.Scope{{Owner: "Acme"}}, Image: "i"}},
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.AddEnrolment(ctx, fleet.Enrolment{TokenHash: "t", ExpiresAt: time.Now().Add(time.Hour)}, 1))
	h, err := s.Enrol(ctx, "t", "c", "mini", "m")
	must(err)
	facts := fleet.HostFacts{Slots: 2}
	must(s.Hello(ctx, h.ID, "a", "m", facts, time.Minute))
	sequence := int64(0)
	report := func(runners ...fleet.RunnerReport) {
		t.Helper()
		sequence++
		must(s.Report(ctx, h.ID, fleet.HostReport{Instance: "a", Sequence: sequence, Facts: facts, Runners: runners}, time.Minute))
	}
	// until waits for the one runner to be as wanted, told by the store.
	until := func(what string, is func(fleet.Runner) bool) fleet.Runner {
		t.Helper()
		deadline := time.After(2 * time.Minute)
		for {
			changed := s.Changed()
			list, _, err := s.ListRunners(ctx, fleet.RunnerQuery{All: true})
			must(err)
			if len(list) > 1 {
				t.Fatalf("%d runners for one job", len(list))
			}
			if len(list) == 1 && is(list[0]) {
				return list[0]
			}
			select {
			case <-changed:
			case <-deadline:
				t.Fatalf("never %s: %+v", what, list)
			}
		}
	}
	job := fleet.Job{ID: 1, Owner: "acme", Repo: "app", Name: "build", Labels: fleet.NewLabels("macos")}
	must(s.Learn(ctx, fleet.JobNews{Event: fleet.ToldQueued, Job: job}))
	r := until("placed", func(r fleet.Runner) bool { return r.Phase() == fleet.PhasePlaced })
	said := fleet.RunnerReport{ID: r.ID, Observed: fleet.ObservedStandby, HoldsSlot: true, Pool: "mac"}
	report(said)
	r = until("armed", func(r fleet.Runner) bool { return r.Phase() == fleet.PhaseArmed })
	if r.Scope.Key() != "acme" {
		t.Errorf("scope %q", r.Scope)
	}
	m, err := s.BeginMint(ctx, h.ID, r.ID, "mf-1")
	must(err)
	must(s.Granted(ctx, r.ID, m.Attempt, 77))
	said.Observed, said.HasConfig = fleet.ObservedIdle, true
	report(said)
	if w, ok, err := loop.Explain(ctx, 1); err != nil || !ok || w.Code != fleet.WaitAssignment || w.Runner != r.ID {
		t.Errorf("%+v, %t, %v", w, ok, err)
	}
	job.RunnerName = "mf-1"
	must(s.Learn(ctx, fleet.JobNews{Event: fleet.ToldInProgress, Job: job}))
	until("bound", func(r fleet.Runner) bool { return r.Job == 1 && r.Phase() == fleet.PhaseBusy })
	job.Conclusion = "success"
	must(s.Learn(ctx, fleet.JobNews{Event: fleet.ToldCompleted, Job: job}))
	until("told to go", func(r fleet.Runner) bool { return r.Wanted == fleet.WantGone })
	said.Observed, said.HoldsSlot, said.Result = fleet.ObservedGone, false, "succeeded"
	report(said)
	until("over", func(r fleet.Runner) bool { return r.Over() })
	select {
	case ref := <-deleted:
		t.Errorf("a registration that GitHub removed by itself was deleted: %+v", ref)
	default:
	}

	// Another VM dies with its registration: it is deleted at GitHub.
	must(s.Report(ctx, h.ID, fleet.HostReport{Instance: "a", Sequence: 100, Facts: facts}, time.Minute))
	lost := fleet.RunnerReport{ID: "r-lost", Observed: fleet.ObservedIdle, HoldsSlot: true, HasConfig: true, Pool: "mac", Scope: fleet.Scope{Owner: "Acme"}, RunnerName: s.Site() + "-mac-lost"}
	must(s.Report(ctx, h.ID, fleet.HostReport{Instance: "a", Sequence: 101, Facts: facts, Runners: []fleet.RunnerReport{lost}}, time.Minute))
	must(s.Report(ctx, h.ID, fleet.HostReport{Instance: "a", Sequence: 102, Facts: facts}, time.Minute))
	select {
	case <-deleted:
	case <-time.After(2 * time.Minute):
		t.Fatal("the registration of a lost VM is not deleted")
	}
	gone := time.After(2 * time.Minute)
	for {
		changed := s.Changed()
		if r, ok, err := s.Runner(ctx, "r-lost"); err == nil && ok && r.Over() {
			break
		} else if err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		select {
		case <-changed:
		case <-gone:
			t.Fatal("the deletion is not confirmed")
		}
	}
}
