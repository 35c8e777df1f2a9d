// SPDX-License-Identifier: MIT

// Package autoscaler owns the decision: a snapshot of all that is known goes in,
// a plan comes out, the reason for which each job waits with it. Decide is pure;
// the Loop beside it reads the snapshot, records the plan and carries out what has
// to happen at GitHub. Nothing else in Minifleet decides how many runners there are.
package autoscaler

import (
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Snapshot is all that a decision is made from.
type Snapshot struct {
	Now   time.Time
	State fleet.State
	Pools []fleet.Pool
	Rules Rules
	// Verdicts are of the policy on jobs; a job without one is allowed.
	Verdicts map[fleet.JobID]Verdict
	Fresh    Fresh
}

// Fresh says which sources of knowledge can be trusted to be up to date. What is
// not known never scales down.
type Fresh struct {
	Demand bool // jobs that were queued are known, and jobs that ended too
	Hosts  bool // every live host had time to report
	// Reported are the hosts that have, as long as Hosts is false. What the books say of
	// another's guests is as old as the controller's last end.
	Reported map[fleet.HostID]bool
}

// Rules are the limits that hold for the whole site.
type Rules struct {
	// HostDeadline is how long a host may be silent before it is unreachable.
	HostDeadline time.Duration
	// MintsPerMinute bounds the registrations begun for one owner.
	MintsPerMinute int
}

// Verdict is what the policy says of a job.
type Verdict struct {
	Pending bool // not known yet: do not arm for it
	Refused bool
	Reason  string
}

// live reports whether the host was heard of lately: it can be given work.
func (s *Snapshot) live(h *fleet.Host) bool { return s.Now.Sub(h.SeenAt) < s.Rules.HostDeadline }

// hoped reports whether what is known of a silent host's runners counts, too: while there
// was no time yet to hear of it.
func (s *Snapshot) hoped(h *fleet.Host) bool { return !s.Fresh.Hosts && !h.SeenAt.IsZero() }
