// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

// A runner that listened in vain counts against the job only where GitHub itself said
// meanwhile that the job is queued.
func TestPassedOver(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		asked time.Time
		want  fleet.JobID
	}{
		"GitHub says queued":     {now.Add(-time.Minute), 1},
		"GitHub was never asked": {time.Time{}, 0},
		"asked before":           {now.Add(-5 * time.Minute), 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			s.pool("a", mac)
			s.host("1", 2)
			s.runner("r", "a", "1", fleet.PhaseIdle, aged(4*time.Minute))
			s.job(1, "app", "macos")
			s.State.Jobs[0].AskedAt = tt.asked
			p := s.decide()
			if len(p.Deletes) != 1 || p.Deletes[0].PassedOver != tt.want {
				t.Errorf("deletes %+v, want one for job %d", p.Deletes, tt.want)
			}
		})
	}
}

// A job that is held back takes no place from another: neither a runner that listens nor a
// slot.
func TestHeldBackTakesNothing(t *testing.T) {
	t.Parallel()
	s := newSnap()
	s.pool("a", mac)
	s.host("1", 2)
	s.runner("r", "a", "1", fleet.PhaseIdle)
	s.job(1, "app", "macos")
	s.job(2, "app", "macos")
	s.State.Jobs[0].PassedOver, s.State.Jobs[0].PassedAt = 2, now
	p := s.decide()
	if diff := cmp.Diff([]string(nil), brief(p)); diff != "" {
		t.Errorf("the plan: %s", diff)
	}
	if w := waitOf(t, p, 2); w.Code != fleet.WaitAssignment {
		t.Errorf("the other waits for %s: %s", w.Code, w.Reason)
	}
	if want := now.Add(10 * time.Minute); !p.WakeAt.Equal(now.Add(time.Minute)) && p.WakeAt.After(want) {
		t.Errorf("it is looked at again at %s, want %s or before", p.WakeAt, want)
	}
}

// While GitHub refuses a pool's registrations in a scope, one job at a time tries, and
// only when it is time; other scopes and pools go on.
func TestRefusedScope(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		last  time.Duration
		pools int
		want  []string
		waits map[int]fleet.WaitCode
	}{
		"resting":          {last: time.Second, pools: 1, waits: map[int]fleet.WaitCode{1: fleet.WaitRefused, 2: fleet.WaitRefused}},
		"one tries":        {last: time.Hour, pools: 1, want: []string{"place a on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting, 2: fleet.WaitRefused}},
		"another pool can": {last: time.Second, pools: 2, want: []string{"place b on h-1", "place b on h-1"}, waits: map[int]fleet.WaitCode{1: fleet.WaitBooting, 2: fleet.WaitBooting}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSnap()
			s.pool("a", mac)
			if tt.pools > 1 {
				s.pool("b", append([]string{"more"}, mac...))
			}
			s.host("1", 4)
			s.job(1, "app", "macos")
			s.job(2, "app", "macos")
			s.State.Refused = map[fleet.PoolScope]fleet.Refusals{
				{Pool: "a", Scope: "acme"}:  {Times: 5, LastAt: now.Add(-tt.last), Reason: "403"},
				{Pool: "b", Scope: "other"}: {Times: 9, LastAt: now},
			}
			p := s.decide()
			if diff := cmp.Diff(tt.want, brief(p)); diff != "" {
				t.Errorf("the plan: %s", diff)
			}
			for id, code := range tt.waits {
				if w := waitOf(t, p, id); w.Code != code {
					t.Errorf("job %d waits for %s: %s; want %s", id, w.Code, w.Reason, code)
				}
			}
		})
	}
}

// A job that runs beyond its pool's limit is ended, and no other.
func TestLongestJob(t *testing.T) {
	t.Parallel()
	s := newSnap()
	s.pool("a", mac, func(p *fleet.Pool) { p.Limits.Job = time.Hour })
	s.host("1", 9)
	s.runner("long", "a", "1", fleet.PhaseBusy, bound(1), aged(time.Hour))
	s.runner("short", "a", "1", fleet.PhaseBusy, bound(2), aged(59*time.Minute))
	p := s.decide()
	if len(p.Retires) != 1 || p.Retires[0].Runner != "long" || p.Retires[0].Drain || p.Retires[0].Failure {
		t.Errorf("retires %+v", p.Retires)
	}
	if !p.WakeAt.Equal(now.Add(time.Minute)) {
		t.Errorf("the next look is at %s", p.WakeAt)
	}
}
