// SPDX-License-Identifier: MIT

package fleet

import (
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Desired is all that the controller wants of one host: levels, not commands.
type Desired struct {
	Site     string // the agent refuses another site's
	Epoch    int64  // and an older epoch than it has seen
	Revision int64
	Runners  []DesiredRunner
	Images   []Prefetch
}

// DesiredRunner is what is wanted of one runner, with all that its host needs to
// make it.
type DesiredRunner struct {
	ID     RunnerID
	Wanted Wanted
	Scope  Scope
	Pool   string
	Image  string // that it was placed with, "" where that is not known
}

// HostReport is the full observed state of a host. Reports are ordered by
// sequence within an instance of the agent.
type HostReport struct {
	Instance string
	Sequence int64
	Revision int64 // of the newest Desired that the agent has begun to act on
	Facts    HostFacts
	Runners  []RunnerReport
	Images   []CachedImage
}

// RunnerReport is what an agent observes of one runner.
type RunnerReport struct {
	ID        RunnerID
	Observed  Observed
	HoldsSlot bool
	HasConfig bool
	Failure   string
	Result    string // succeeded, failed, canceled, ...: "" while unknown or without a job
	Progress  string
	Took      StepTimes
	// What the guest was told of its job before the first step, see Runner.
	JobRepository string
	JobRun        int64
	JobRefused    string
	Runner        string // version of GitHub's runner in the guest, "" while that has not named it
	Refused       bool   // GitHub refuses that version as too old
	// For a runner that the controller does not know, or knows less of.
	Pool       string
	Scope      Scope
	RunnerName string // at GitHub, of the config that the guest was given
}

// Mint is permission to register a runner once, with the name it must use.
type Mint struct {
	Runner  RunnerID
	Pool    string
	Scope   Scope
	Attempt int
	Name    string
	// Earlier is the registration of an earlier attempt that must be deleted
	// first; nil means there is none.
	Earlier *RegistrationRef
}

// RegistrationRef finds a registration at GitHub: by id, or by name where the
// answer that carried the id was lost.
type RegistrationRef struct {
	Scope Scope
	Name  string
	ID    int64
	Begun time.Time // when GitHub was asked for it
}

// Listed is a registration as GitHub's list shows it. The list lags, and one that is
// missing from it may exist.
type Listed struct {
	ID     int64
	Name   string
	Online bool // its listener is connected
	Busy   bool // lags by up to a minute, in both directions
}

// Enrolment is a one-time permission for a host to join.
type Enrolment struct {
	TokenHash string
	HostName  string // "" lets the host choose
	ExpiresAt time.Time
}

// Moment is an entry of a runner's timeline.
type Moment struct {
	At     time.Time
	Phase  Phase
	Detail string
}

// Registered is a registration that GitHub made, with its JIT config.
type Registered struct {
	ID     int64
	Config secret.Text
}
