// SPDX-License-Identifier: MIT

package guest

import (
	"time"

	"github.com/minifleet/minifleet/trust"
)

// Protocol is the version of the protocol that this package speaks: the first
// segment of every path, repeated in every health and status answer.
const Protocol = 1

// Sizes that both sides hold to. A guest that sends more is not believed; a
// host that sends more is refused.
const (
	maxRequestBytes = 384 << 10
	maxStatusBytes  = 64 << 10
	maxErrorBytes   = 8 << 10
	maxReasonBytes  = 1 << 10
	maxJITBytes     = 96 << 10  // Linux takes at most 128 KiB for one variable
	maxTailBytes    = 256 << 10 // the end of the listener's output
	maxDiagBytes    = 32 << 20  // the tar of the runner's _diag
	maxWait         = time.Hour
	maxGrace        = time.Hour
)

// Phase says how far the guest's runner has come.
type Phase string

// The phases. A guest goes from ready to finished once in its life; a listener
// that has to be started again (an update, a passing error) is starting again.
const (
	PhaseReady    Phase = "ready"    // no JIT config was ever taken
	PhaseStarting Phase = "starting" // the listener was started, and has not said that it listens
	PhaseIdle     Phase = "idle"     // the listener waits for a job
	PhaseBusy     Phase = "busy"     // the listener took a job
	PhaseFinished Phase = "finished" // the listener ended and will not be started again
)

// Result is how a job ended, in the runner's words. It is empty as long as the
// runner has not said it.
type Result string

// The results of a job.
const (
	ResultSucceeded Result = "succeeded"
	ResultFailed    Result = "failed"
	ResultCanceled  Result = "canceled"
	ResultAbandoned Result = "abandoned"
	ResultSkipped   Result = "skipped"
)

// Outcome is the class of a runner's end. It is empty until the phase is
// PhaseFinished.
type Outcome string

// The outcomes of a runner.
const (
	// OutcomeJob means that the runner ran its one job and said how it ended.
	OutcomeJob Outcome = "job"
	// OutcomeNoJob means that the runner ended by itself and never had a job:
	// its registration is gone, or its job went to another runner.
	OutcomeNoJob Outcome = "no_job"
	// OutcomeRefused means that the service refuses this version of the runner, or has it
	// update itself again and again.
	OutcomeRefused Outcome = "refused"
	// OutcomeConflict means that another session exists for the registration.
	OutcomeConflict Outcome = "conflict"
	// OutcomeBadConfig means that the runner could not use its JIT config.
	OutcomeBadConfig Outcome = "bad_config"
	// OutcomeCrashed means that the runner ended in a way that explains
	// nothing: killed by a signal, an unknown exit code, too many restarts, or
	// in the middle of its job.
	OutcomeCrashed Outcome = "crashed"
	// OutcomeUnstartable means that the listener program could not be started.
	OutcomeUnstartable Outcome = "unstartable"
	// OutcomeEnded means that it was ended on request before a job's result
	// was known.
	OutcomeEnded Outcome = "ended"
)

// Runner is what the guest knows of its runner.
type Runner struct {
	StartedAt  time.Time `json:"started_at,omitzero"`
	IdleAt     time.Time `json:"idle_at,omitzero"`
	BusyAt     time.Time `json:"busy_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	Result     Result    `json:"result,omitempty"`
	// ExitCode is the listener's last exit code, -1 when a signal ended it;
	// nil when it has not ended or could not be started.
	ExitCode *int    `json:"exit_code,omitempty"`
	Outcome  Outcome `json:"outcome,omitempty"`
	// Reason is one sentence for the operator that explains the outcome.
	Reason string `json:"reason,omitempty"`
	// Relaunches counts how often the listener was started again.
	Relaunches int `json:"relaunches,omitempty"`
	// Job is what the runner's job-started hook told of its one job.
	Job JobHook `json:"job,omitzero"`
	// Version is the runner's version as it names it itself.
	Version string `json:"runner_version,omitempty"`
}

// JobHook is what the runner's job-started hook told before the job's first step, and what
// became of it. Without a policy there is no hook of ours.
type JobHook struct {
	AskedAt    time.Time `json:"asked_at,omitzero"`
	Repository string    `json:"repository,omitempty"` // owner/name
	Run        int64     `json:"run,omitempty"`
	// Refused says why the guest ended the job, "" if it did not.
	Refused string `json:"refused,omitempty"`
	// Unasked says that the runner ran its job without its hook.
	Unasked bool `json:"unasked,omitempty"`
}

// Status is everything a guest reports. Revision grows with every change of
// the rest; Instance is new with every start of the guest program.
type Status struct {
	Protocol  int    `json:"protocol"`
	Instance  string `json:"instance"`
	Revision  uint64 `json:"revision"`
	Phase     Phase  `json:"phase"`
	HasConfig bool   `json:"has_config"`
	Runner    Runner `json:"runner,omitzero"`
}

// Health is the answer of a guest that runs.
type Health struct {
	Protocol int    `json:"protocol"`
	Instance string `json:"instance"`
	Version  string `json:"version,omitempty"` // of the guest program
	// SessionReady says that a runner can be started: on a Mac whose runner
	// needs it, the user's GUI session is there. Elsewhere it is true at once.
	SessionReady bool `json:"session_ready"`
	// JobHook says that this guest can check jobs against a policy.
	JobHook bool `json:"job_hook,omitempty"`
}

// runRequest is the body of POST run. It is the one place where the JIT config
// is plain text, hence not exported.
type runRequest struct {
	JITConfig string            `json:"jit_config"`
	Env       map[string]string `json:"env,omitempty"`
	Trust     *trust.Policy     `json:"trust,omitempty"`
}

type endRequest struct {
	GraceSeconds float64 `json:"grace_seconds"`
}

type errorBody struct {
	Error string `json:"error"`
}
