// SPDX-License-Identifier: MIT

package fleet

import "time"

// RunnerID is made by the controller: it names the runner, its VM and its bundle.
type RunnerID string

// Runner is one ephemeral runner: one VM, one registration at a time, one job at
// most. Three parties write it, each its own part: the controller what is wanted,
// the agent what is observed, GitHub (through answers and deliveries) the
// registration.
type Runner struct {
	ID     RunnerID
	Pool   string
	Host   HostID // "" while no host is found
	Image  string // it is made from: a name, or a reference with a digest; "" if that is not known
	Reason string // why it was placed there

	Wanted    Wanted
	Scope     Scope     // granted with Arm
	ArmedAt   time.Time // when it was granted last
	RetiredAt time.Time
	Retired   string // why it was told to go

	Observed  Observed
	HoldsSlot bool
	HasConfig bool   // the guest was handed a JIT config: it holds or held a secret
	Failure   string // why it failed, "" if it did not
	Result    string // of its job, as the guest saw it
	Runner    string // version of GitHub's runner in it, as that names itself first
	Progress  string // of long work, such as an image pull
	Took      StepTimes

	Registration Registration
	RunnerName   string // at GitHub, of the newest attempt
	GitHubID     int64
	Attempt      int       // registrations begun for this runner
	DeleteAfter  time.Time // a refused DELETE is not repeated before

	Job     JobID // bound by GitHub's word, 0 if none
	JobDone bool  // that job is completed
	// What the guest's job-started hook told of its job, before GitHub names it: the
	// repository and the run, and why the guest ended it, if the pool's policy refuses it.
	JobRepository string
	JobRun        int64
	JobRefused    string

	Since     time.Time // start of the current phase, our clock
	MovedAt   time.Time // last progress within it
	CreatedAt time.Time
	Version   int64 // compare-and-set
}

// Phase returns where the runner stands on its way.
func (r *Runner) Phase() Phase {
	return PhaseOf(r.Host != "", r.Wanted, r.Observed, r.Registration)
}

// AdoptedReason is the Reason of a runner that was taken over from an agent's
// report: the controller had no record of it and never armed it.
const AdoptedReason = "adopted: its agent runs it and the controller had no record of it"

// Adopted reports whether nothing but an agent's word vouches for the runner.
func (r *Runner) Adopted() bool { return r.Reason == AdoptedReason }

// Unvouched reports whether the runner holds a config that this controller has not
// granted, as far as it knows. It may end its job; it gets no registration and
// counts for nothing.
func (r *Runner) Unvouched() bool { return r.HasConfig && r.ArmedAt.IsZero() }

// Over reports whether nothing of the runner is left anywhere: no VM and no
// registration.
func (r *Runner) Over() bool {
	return r.Observed == ObservedGone && (r.Registration == RegNone || r.Registration == RegGone)
}

// TakesSlot reports whether the runner uses one of its host's slots: reserved
// from the moment it was placed, until the agent says that the VM's lock is
// released.
func (r *Runner) TakesSlot() bool {
	switch r.Observed {
	case ObservedGone:
		return false
	case ObservedFinished, ObservedFailed, ObservedDestroying:
		return r.HoldsSlot
	default:
		return true
	}
}

// Wanted is the controller's part of a runner.
type Wanted string

// What the controller can want of a runner.
const (
	WantUp    Wanted = "up"    // a VM whose guest answers, without a secret
	WantArmed Wanted = "armed" // and a registration in one scope
	WantDrain Wanted = "drain" // gone, unless its guest is running a job
	WantGone  Wanted = "gone"
)

// Wanteds lists all values of Wanted.
func Wanteds() []Wanted { return []Wanted{WantUp, WantArmed, WantDrain, WantGone} }

// WantedEvent is a decision about a runner.
type WantedEvent string

// The decisions.
const (
	DoArm    WantedEvent = "arm"
	DoDisarm WantedEvent = "disarm" // take back a grant that was not used
	DoDrain  WantedEvent = "drain"
	DoRetire WantedEvent = "retire"
	DoResume WantedEvent = "resume" // a drain was vetoed: the runner is busy
)

// WantedEvents lists all decisions.
func WantedEvents() []WantedEvent {
	return []WantedEvent{DoArm, DoDisarm, DoDrain, DoRetire, DoResume}
}

// Next returns what is wanted after a decision. Gone is final.
func (w Wanted) Next(e WantedEvent) Wanted {
	const up, armed, drain, gone = WantUp, WantArmed, WantDrain, WantGone
	var row [5]Wanted // in the order of WantedEvents
	switch w {
	case up:
		row = [5]Wanted{armed, up, drain, gone, up}
	case armed:
		row = [5]Wanted{armed, up, drain, gone, armed}
	case drain:
		row = [5]Wanted{drain, drain, drain, gone, armed}
	default:
		row = [5]Wanted{gone, gone, gone, gone, gone}
	}
	for i, known := range WantedEvents() {
		if e == known {
			return row[i]
		}
	}
	return w
}

// Observed is the agent's part of a runner.
type Observed string

// What an agent can observe.
const (
	ObservedNone        Observed = ""            // not begun
	ObservedPreparing   Observed = "preparing"   // image, clone
	ObservedBooting     Observed = "booting"     // vmm started, guest silent
	ObservedStandby     Observed = "standby"     // guest answers, holds no config
	ObservedRegistering Observed = "registering" // listener started
	ObservedIdle        Observed = "idle"        // listening for a job
	ObservedBusy        Observed = "busy"
	ObservedFinished    Observed = "finished"   // listener over
	ObservedFailed      Observed = "failed"     // VM or listener failed; being cleaned up
	ObservedDestroying  Observed = "destroying" // VM stopping, files being deleted
	ObservedGone        Observed = "gone"
)

// Observeds lists all observations in their usual order.
func Observeds() []Observed {
	return []Observed{
		ObservedNone, ObservedPreparing, ObservedBooting, ObservedStandby, ObservedRegistering,
		ObservedIdle, ObservedBusy, ObservedFinished, ObservedFailed, ObservedDestroying, ObservedGone,
	}
}

// Ended reports whether the listener has ended, or its VM has: there is no job any more
// that it could run.
func (o Observed) Ended() bool {
	switch o {
	case ObservedFinished, ObservedFailed, ObservedDestroying, ObservedGone:
		return true
	default:
		return false
	}
}

// Next returns the observation after a newer report. Reports are full states,
// already ordered by sequence, so only what can really happen is taken: a
// listener that restarts itself goes from idle back to registering; all else only
// moves forward, a failure stays visible until the VM is gone, and gone is final.
func (o Observed) Next(reported Observed) Observed {
	from, to := rankObserved(o), rankObserved(reported)
	switch {
	case to < 0:
		return o
	case o == ObservedIdle && reported == ObservedRegistering:
		return reported
	case o == ObservedFailed && reported == ObservedDestroying:
		return o
	case o == ObservedDestroying && reported == ObservedFailed:
		return o
	case to > from:
		return reported
	default:
		return o
	}
}

func rankObserved(o Observed) int {
	for i, known := range Observeds() {
		if o == known {
			return i
		}
	}
	return -1
}

// Registration is GitHub's part of a runner.
type Registration string

// The states of a registration.
const (
	RegNone     Registration = ""
	RegMinting  Registration = "minting"  // name committed, GitHub asked, answer not known
	RegMinted   Registration = "minted"   // GitHub answered with an id
	RegBusy     Registration = "busy"     // GitHub says that it runs a job
	RegDeleting Registration = "deleting" // DELETE decided, not confirmed
	RegGone     Registration = "gone"
)

// Registrations lists all states of a registration.
func Registrations() []Registration {
	return []Registration{RegNone, RegMinting, RegMinted, RegBusy, RegDeleting, RegGone}
}

// RegEvent is news about a registration.
type RegEvent string

// The events of a registration.
const (
	RegMint     RegEvent = "mint"     // a new attempt with a new name begins
	RegGranted  RegEvent = "granted"  // GitHub gave a config
	RegRefused  RegEvent = "refused"  // GitHub certainly made none
	RegStarted  RegEvent = "started"  // a delivery names this runner in a job
	RegFinished RegEvent = "finished" // its one job is over: GitHub removes it by itself
	RegDelete   RegEvent = "delete"   // we decide to delete it
	RegDeleted  RegEvent = "deleted"  // 204 or 404
	RegVetoed   RegEvent = "vetoed"   // 422: it runs a job
)

// RegEvents lists all events of a registration.
func RegEvents() []RegEvent {
	return []RegEvent{RegMint, RegGranted, RegRefused, RegStarted, RegFinished, RegDelete, RegDeleted, RegVetoed}
}

// Next returns the state after an event. A new attempt begins only where no
// registration is left. What GitHub's deliveries say of a busy runner is believed
// even before the answer to the mint is stored. A grant that comes after a DELETE
// found nothing is a registration that must be deleted once more.
func (s Registration) Next(e RegEvent) Registration {
	const none, minting, minted, busy, deleting, gone = RegNone, RegMinting, RegMinted, RegBusy, RegDeleting, RegGone
	var row [8]Registration // in the order of RegEvents
	switch s {
	case none:
		row = [8]Registration{minting, none, none, none, none, none, none, none}
	case minting:
		row = [8]Registration{minting, minted, gone, busy, gone, deleting, gone, busy}
	case minted:
		row = [8]Registration{minted, minted, minted, busy, gone, deleting, gone, busy}
	case busy:
		row = [8]Registration{busy, busy, busy, busy, gone, deleting, gone, busy}
	case deleting:
		row = [8]Registration{deleting, deleting, gone, busy, gone, deleting, gone, busy}
	default:
		row = [8]Registration{minting, deleting, gone, gone, gone, gone, gone, gone}
	}
	for i, known := range RegEvents() {
		if e == known {
			return row[i]
		}
	}
	return s
}
