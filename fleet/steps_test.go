// SPDX-License-Identifier: MIT

package fleet_test

import (
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func TestSteps(t *testing.T) {
	t.Parallel()
	names := map[string]bool{}
	for _, step := range fleet.Steps() {
		back, ok := fleet.ParseStep(step.String())
		if !ok || back != step || step.String() == "" || names[step.String()] {
			t.Errorf("step %d is called %q, which leads to %d", step, step, back)
		}
		names[step.String()] = true
	}
	for _, name := range []string{"", "lunch"} {
		if _, ok := fleet.ParseStep(name); ok {
			t.Errorf("%q is a step", name)
		}
	}
	for _, step := range []fleet.Step{-1, fleet.Step(len(fleet.Steps()))} {
		if step.String() != "" {
			t.Errorf("step %d is called %q", step, step)
		}
	}
}

// An agent that was started again reports what it has measured itself and no more.
func TestStepTimesAreKept(t *testing.T) {
	t.Parallel()
	before := fleet.StepTimes{fleet.StepClone: time.Second, fleet.StepBoot: 2 * time.Second}
	after := before.With(fleet.StepTimes{fleet.StepBoot: 3 * time.Second, fleet.StepStop: time.Second})
	if want := (fleet.StepTimes{fleet.StepClone: time.Second, fleet.StepBoot: 3 * time.Second, fleet.StepStop: time.Second}); after != want {
		t.Errorf("got %v, want %v", after, want)
	}
	if after.Total() != 5*time.Second || before.Total() != 3*time.Second {
		t.Errorf("sums %s and %s", after.Total(), before.Total())
	}
}
