// SPDX-License-Identifier: MIT

package fleet

import "time"

// ScaleSet is a pool's runner scale set as the books have it.
type ScaleSet struct {
	Pool  string
	Scope Scope
	Name  string
	ID    int64 // GitHub's, within the scope; 0 before it is known
	// Session is the message session that this site opened last, "" if it was closed.
	Session string
	// LastMessage is the message whose content was stored last.
	LastMessage int64
	Assigned    int       // jobs that GitHub has given it and that are not over, as it said last
	Running     int       // of these, those that run
	HeardAt     time.Time // when it said so, our clock
}

// SetMessage is what a message of a scale set's queue, or an answer about the set, says.
type SetMessage struct {
	Pool string
	// Set is the scale set's id. A message for one that the pool has no more is refused.
	Set int64
	// ID is the message's, 0 for an answer that no message brought.
	ID int64
	// Assigned and Running are GitHub's statistics of the set's jobs.
	Assigned, Running int
	// Jobs are news of jobs, each named by SetKey: their ids are the books'.
	Jobs []JobNews
	// Complete says that nothing is under way beside it, so that jobs which the statistics
	// count and no message named are to be entered without a name.
	Complete bool
}

// SetJobIDs is where the ids of jobs begin that scale sets tell of. Their messages do not
// carry the id by which GitHub's other interfaces name a job; these numbers are far
// beyond any of those, and still exact in JSON readers that hold numbers as floats.
const SetJobIDs JobID = 9_000_000_000_000_000

// NamelessJob begins the SetKey of a job that only the statistics show.
const NamelessJob = "?"

// Nameless reports whether nothing is known of the job but that GitHub counts it.
func (j Job) Nameless() bool { return len(j.SetKey) > 0 && j.SetKey[:1] == NamelessJob }
