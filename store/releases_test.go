// SPDX-License-Identifier: MIT

package store_test

import (
	"testing"

	"github.com/minifleet/minifleet/fleet"
)

// What guests say of their runner is kept with runner and image; a refusal counts against
// the pool, never against the host, and is over when a runner of that image has had a job.
func testVersionsOfRunners(t *testing.T, open opener) {
	w := newWorld(t, open)
	h := w.host("a", 9)
	imaged := func() fleet.RunnerID {
		done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: h, Image: "sonoma", Reason: "test"}}})
		return done.Placed[0]
	}
	report := func(id fleet.RunnerID, o fleet.Observed, version string, refused bool) {
		s := said(id, o)
		s.Runner, s.Refused = version, refused
		if refused {
			s.Failure = "the runner failed (refused)"
		}
		w.report(h, w.others(h, s)...)
	}
	now := func() fleet.PoolRunner {
		t.Helper()
		all, err := w.s.PoolRunners(w.ctx())
		w.must(err)
		return all["mac"]
	}
	first := imaged()
	report(first, fleet.ObservedStandby, "", false)
	if got := now(); got != (fleet.PoolRunner{}) {
		t.Errorf("before any version: %+v", got)
	}
	report(first, fleet.ObservedIdle, "2.330.0", false)
	report(first, fleet.ObservedIdle, "2.337.0", false) // it has updated itself: the image has not
	if r := w.runner(first); r.Runner != "2.330.0" {
		t.Errorf("the runner's version is %q", r.Runner)
	}
	if got := now(); got.Version != "2.330.0" || got.Image != "sonoma" || !got.RefusedAt.IsZero() || !got.SeenAt.Equal(w.Now()) {
		t.Errorf("named: %+v", got)
	}
	second := imaged()
	report(second, fleet.ObservedFailed, "", true)
	if got := now(); got.Version != "2.330.0" || !got.RefusedAt.Equal(w.Now()) {
		t.Errorf("refused: %+v", got)
	}
	if failures := w.hostNow(h).Failures; failures != 0 {
		t.Errorf("the host is blamed %d times", failures)
	}
	if failures := w.state().Pools["mac"].Failures; failures != 1 {
		t.Errorf("the pool is blamed %d times", failures)
	}
	third := imaged()
	report(third, fleet.ObservedIdle, "2.330.0", false)
	if got := now(); got.RefusedAt.IsZero() {
		t.Errorf("a version that listens is taken for one that serves: %+v", got)
	}
	report(third, fleet.ObservedBusy, "2.330.0", false)
	if got := now(); !got.RefusedAt.IsZero() {
		t.Errorf("after a job: %+v", got)
	}
}
