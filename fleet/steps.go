// SPDX-License-Identifier: MIT

package fleet

import (
	"slices"
	"time"
)

// Step is a part of a runner's way that its host measures.
type Step int

// The steps, in their usual order. No two overlap: where a saved state was read back the
// boot begins after it.
const (
	StepRunner   Step = iota // the pool's pinned runner was brought to the host
	StepImage                // the image was found, fetched and checked
	StepClone                // its clone was made
	StepRestore              // a saved state was read back
	StepBoot                 // from the VM's start, or the end of its restore, to the guest's first answer
	StepInstall              // the pinned runner was put into the guest
	StepSession              // from there until the session was ready in which the runner runs
	StepListener             // from the JIT config's hand-over until the runner listened
	StepJob                  // from there until it took a job
	StepStop                 // the VM was powered off
	StepDelete               // its files were deleted
	stepCount
)

var stepNames = [stepCount]string{
	"runner", "image", "clone", "restore", "boot", "install", "session", "listener", "job", "stop", "delete",
}

// Steps lists all steps in their usual order.
func Steps() []Step {
	all := make([]Step, stepCount)
	for i := range all {
		all[i] = Step(i)
	}
	return all
}

// String returns the step's name, "" for what is no step.
func (s Step) String() string {
	if s < 0 || s >= stepCount {
		return ""
	}
	return stepNames[s]
}

// ParseStep finds a step by its name.
func ParseStep(name string) (Step, bool) {
	i := slices.Index(stepNames[:], name)
	return Step(i), i >= 0
}

// StepTimes is how long each step of a runner took, by a clock of its host that nobody
// sets. Zero is a step that was not taken, not yet, or while no agent looked.
type StepTimes [stepCount]time.Duration

// With returns the times after a newer report. What that leaves out stays: an agent that
// was started again has forgotten what the one before it measured.
func (t StepTimes) With(newer StepTimes) StepTimes {
	for i, took := range newer {
		if took > 0 {
			t[i] = took
		}
	}
	return t
}

// Total returns the sum of all steps.
func (t StepTimes) Total() (sum time.Duration) {
	for _, took := range t {
		sum += took
	}
	return sum
}
