// SPDX-License-Identifier: MIT

package fleet

import "time"

// State is the stored part of what a decision is made from, read at one moment.
type State struct {
	Jobs    []Job    // queued, oldest demand first
	Runners []Runner // not Over
	Hosts   []Host
	Pools   map[string]PoolHealth
	Refused map[PoolScope]Refusals // of the pools that GitHub lets register nothing in a scope
	Mints   map[string]MintUse     // by lower-case owner of the scope
	// Rollouts are of the pools whose image is a reference.
	Rollouts map[string]Rollout
	// Runs are those of the jobs, as far as they are known. Nobody may write to them.
	Runs map[RunKey]*Run
}

// PoolHealth counts the runners of a pool that failed in a row.
type PoolHealth struct {
	Failures int
	FailedAt time.Time
	Reason   string // of the last of them
}

// PoolScope is a pool in one of its scopes.
type PoolScope struct{ Pool, Scope string } // Scope is its key

// Refusals counts the registrations in a row that GitHub refused to a pool in one scope,
// for a reason that another try does not change: no such runner group, no permission.
type Refusals struct {
	Times  int
	LastAt time.Time
	Reason string // of the last of them
}

// MintUse is when the registrations of one owner that are not older than a minute were
// begun, the oldest first.
type MintUse struct{ Begun []time.Time }

// Trouble is why no registration can be made in a scope for a pool, as GitHub or the way
// to it showed last.
type Trouble struct {
	Code   WaitCode
	Reason string    // a sentence without its end
	Until  time.Time // when it is tried again; zero: that is not known
	Barred bool      // nothing is tried before GitHub tells otherwise: the App was removed, or suspended
}

// Plan is a decision: what to do now, why each job that waits does so, and when
// to look again if nothing happens before.
type Plan struct {
	Places  []Place
	Arms    []Arm
	Disarms []Disarm
	Retires []Retire
	Deletes []Delete

	Rollouts []RolloutStep
	Fetches  []Fetch

	Waits  []Wait
	WakeAt time.Time // zero: nothing is due
}

// Empty reports whether the plan changes nothing.
func (p Plan) Empty() bool {
	return len(p.Places)+len(p.Arms)+len(p.Disarms)+len(p.Retires)+len(p.Deletes)+len(p.Rollouts)+len(p.Fetches) == 0
}

// Place makes a runner of a pool on a host and takes a slot for it.
type Place struct {
	Pool   string
	Image  string // a name, or a reference with a digest
	Tries  bool   // the image is the pool's next one, which this runner is to try
	Host   HostID
	Reason string
}

// RolloutStep changes which image a pool's runners are made from.
type RolloutStep struct {
	Pool    string
	Version int64
	Act     RolloutAct
	Reason  string
}

// Fetch is all that a host is to have in its cache.
type Fetch struct {
	Host   HostID
	Images []Prefetch
}

// Arm grants a standby a registration in one scope, for the sake of a job: it is
// void if that job is no longer queued when it is carried out.
type Arm struct {
	Runner  RunnerID
	Version int64
	Scope   Scope
	Job     JobID
}

// Disarm takes back a grant that was not used.
type Disarm struct {
	Runner  RunnerID
	Version int64
	Reason  string
}

// Retire tells a runner to go. A Drain goes only if its guest runs no job.
type Retire struct {
	Runner  RunnerID
	Version int64
	Drain   bool
	Failure bool // it counts against pool and host
	Reason  string
}

// Delete removes a registration at GitHub.
type Delete struct {
	Runner     RunnerID
	Version    int64
	Failure    bool // it counts against pool and host
	Reason     string
	PassedOver JobID // that it listened for in vain, 0 if it is not for that
}

// Wait says why a queued job is not running yet.
type Wait struct {
	Job    JobID
	Code   WaitCode
	Reason string   // a sentence
	Runner RunnerID // that is coming for it, "" if none
}

// WaitCode names a reason to wait, for filters and metrics.
type WaitCode string

// The reasons to wait.
const (
	WaitNoPool      WaitCode = "no_pool"     // no pool serves its labels in its repository
	WaitAssignment  WaitCode = "assignment"  // a runner listens: GitHub has yet to assign
	WaitUnnamed     WaitCode = "unnamed"     // a guest is busy with a job GitHub has not named
	WaitRegistering WaitCode = "registering" // a runner is registering
	WaitStandby     WaitCode = "arming"      // a standby is being armed
	WaitBooting     WaitCode = "booting"     // a VM is coming
	WaitMintBudget  WaitCode = "mint_budget" // GitHub's registration limit is used up
	WaitPolicy      WaitCode = "policy"      // no verdict yet, or refused
	WaitPoolLimit   WaitCode = "pool_limit"  // every pool for it is at max_runners
	WaitImage       WaitCode = "image"       // no digest of the pool's image is known yet
	WaitNoHost      WaitCode = "no_host"     // no host can run the pool
	WaitNoSlot      WaitCode = "no_slot"     // every slot is taken
	WaitBackoff     WaitCode = "backoff"     // its pool failed several times in a row
	WaitUnreachable WaitCode = "unreachable" // the only fitting hosts are not heard from

	WaitNotAssigned  WaitCode = "not_assigned" // runners listened for it, and GitHub gave it to none
	WaitRefused      WaitCode = "refused"      // GitHub refuses the pool's registrations where the job is
	WaitQueueLimit   WaitCode = "queue_limit"  // queued for so long that GitHub has cancelled it, or will
	WaitGitHub       WaitCode = "github"       // GitHub cannot be reached
	WaitRateLimit    WaitCode = "rate_limit"   // GitHub wants no calls for a while
	WaitInstallation WaitCode = "installation" // the App is not installed there, or suspended
)

// Carried says how much of a plan still held when it was recorded.
type Carried struct {
	Done, Void int
	Placed     []RunnerID
	Deletes    []Deletion // recorded as intended: to be done at GitHub now
}

// Deletion is a registration to delete at GitHub.
type Deletion struct {
	Runner  RunnerID
	Attempt int
	Ref     RegistrationRef
	Since   time.Time // start of the runner's phase: what has failed for long is tried less often
}
