// SPDX-License-Identifier: MIT

// Package autoscaler owns the decision: a snapshot of all that is known goes in,
// a plan comes out, the reason for which each job waits with it. Decide is pure;
// the Loop beside it reads the snapshot, records the plan and carries out what has
// to happen at GitHub. Nothing else in Minifleet decides how many runners there are.
package autoscaler

import (
	"cmp"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Snapshot is all that a decision is made from.
type Snapshot struct {
	Now   time.Time
	State fleet.State
	Pools []fleet.Pool
	Rules Rules
	// Verdicts are of the pools' policies on jobs; a job without one is allowed.
	Verdicts map[fleet.JobID]fleet.Verdict
	Fresh    Fresh
	// Troubles are of pools and scopes in which no registration can be made now.
	Troubles map[fleet.PoolScope]fleet.Trouble
	// Troubled is when those were in trouble last that are or were.
	Troubled map[fleet.PoolScope]time.Time
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
	Images         ImageRules
}

// ImageRules say how images come to the hosts.
type ImageRules struct {
	// ReadyPercent of the live hosts that serve a pool must hold its next image before that
	// serves. 0 means 100.
	ReadyPercent int
	// PrefetchLimit is after how long the next image serves although not enough hosts hold
	// it, as long as one does; 0 waits for them.
	PrefetchLimit time.Duration
	// PrefetchHosts bounds how many hosts fetch at once. 0 means 2.
	PrefetchHosts int
	// BytesPerSecond is shared by those that fetch. 0 sets no limit.
	BytesPerSecond int64
	// Stall is after how long without progress a host gives up its turn, and how long it
	// then waits for another at least. 0 means 5 minutes.
	Stall time.Duration
}

func (r ImageRules) withDefaults() ImageRules {
	r.ReadyPercent = cmp.Or(r.ReadyPercent, 100)
	r.PrefetchHosts = cmp.Or(r.PrefetchHosts, 2)
	r.Stall = cmp.Or(r.Stall, 5*time.Minute)
	return r
}

// live reports whether the host was heard of lately: it can be given work.
func (s *Snapshot) live(h *fleet.Host) bool { return s.Now.Sub(h.SeenAt) < s.Rules.HostDeadline }

// hoped reports whether what is known of a silent host's runners counts, too: while there
// was no time yet to hear of it.
func (s *Snapshot) hoped(h *fleet.Host) bool { return !s.Fresh.Hosts && !h.SeenAt.IsZero() }
