// SPDX-License-Identifier: MIT

package fleet

import (
	"cmp"
	"strings"
	"time"

	"github.com/minifleet/minifleet/trust"
)

// JobID is GitHub's id of a workflow job. A re-run has a new one.
type JobID int64

// JobState is what is known of a job's progress at GitHub.
type JobState string

// The states of a job. JobUnknown is the state of a job never heard of.
const (
	JobUnknown    JobState = ""
	JobWaiting    JobState = "waiting" // held by a deployment gate: not demand
	JobQueued     JobState = "queued"  // demand
	JobInProgress JobState = "in_progress"
	JobCompleted  JobState = "completed"
)

// JobStates lists all states in the order in which a job passes them.
func JobStates() []JobState {
	return []JobState{JobUnknown, JobWaiting, JobQueued, JobInProgress, JobCompleted}
}

// JobEvent is a piece of news about a job. Told events come from webhooks, which
// arrive late, twice and in any order; seen events come from a GET that is newer
// than what is stored.
type JobEvent string

// The events of a job.
const (
	ToldWaiting    JobEvent = "told_waiting"
	ToldQueued     JobEvent = "told_queued"
	ToldInProgress JobEvent = "told_in_progress"
	ToldCompleted  JobEvent = "told_completed"
	SeenWaiting    JobEvent = "seen_waiting"
	SeenQueued     JobEvent = "seen_queued"
	SeenInProgress JobEvent = "seen_in_progress"
	SeenCompleted  JobEvent = "seen_completed"
)

// JobEvents lists all events of a job.
func JobEvents() []JobEvent {
	return []JobEvent{
		ToldWaiting, ToldQueued, ToldInProgress, ToldCompleted,
		SeenWaiting, SeenQueued, SeenInProgress, SeenCompleted,
	}
}

// jobTable is total: each row gives, for one state, the next state for every
// event in the order of JobEvents. Told events move a job only forward. A seen
// event is authoritative, and may move a job back to queued when GitHub took it
// from a runner that never answered. Completed is final: GitHub gives a re-run a
// new id.
func jobTable(s JobState) [8]JobState {
	const w, q, p, c = JobWaiting, JobQueued, JobInProgress, JobCompleted
	switch s {
	case JobUnknown:
		return [8]JobState{w, q, p, c, w, q, p, c}
	case JobWaiting:
		return [8]JobState{w, q, p, c, w, q, p, c}
	case JobQueued:
		return [8]JobState{q, q, p, c, w, q, p, c}
	case JobInProgress:
		return [8]JobState{p, p, p, c, w, q, p, c}
	default: // completed
		return [8]JobState{c, c, c, c, c, c, c, c}
	}
}

// Next returns the state after e. An event that is not one of JobEvents leaves
// the state as it is.
func (s JobState) Next(e JobEvent) JobState {
	for i, known := range JobEvents() {
		if e == known {
			return jobTable(s)[i]
		}
	}
	return s
}

// Told returns the event of a webhook that carries the given status, and false
// for a status that is not a job's.
func Told(s JobState) (JobEvent, bool) {
	switch s {
	case JobWaiting, JobQueued, JobInProgress, JobCompleted:
		return JobEvent("told_" + string(s)), true
	default:
		return "", false
	}
}

// Seen returns the event of a GET that shows the given status.
func Seen(s JobState) (JobEvent, bool) {
	switch s {
	case JobWaiting, JobQueued, JobInProgress, JobCompleted:
		return JobEvent("seen_" + string(s)), true
	default:
		return "", false
	}
}

// Job is a GitHub workflow job.
type Job struct {
	ID             JobID
	RunID          int64
	RunAttempt     int
	InstallationID int64 // of the App, as the delivery named it
	Owner, Repo    string
	Workflow, Name string
	Labels         Labels
	Visibility     trust.Visibility // of its repository, as the delivery named it
	// Pool is that of the scale set which GitHub has given the job to: no other serves it.
	// "" is a job of webhooks, which any pool may serve that has its labels.
	Pool string
	// SetKey names the job in the messages of that scale set, "" for a job of webhooks.
	SetKey     string
	State      JobState
	Conclusion string // GitHub's word, "" until completed
	RunnerName string // as GitHub names it, "" until in progress
	RunnerID   int64  // the same at GitHub; only in news, not kept
	URL        string // page of the job at GitHub

	CreatedAt   time.Time // GitHub's clock
	HeardAt     time.Time // first known at all, our clock
	QueuedAt    time.Time // first known as queued, our clock: the age of demand
	StartedAt   time.Time // first known as in progress, our clock
	CompletedAt time.Time // first known as completed, our clock
	ToldAt      time.Time // newest delivery, our clock; zero: known from GitHub's own lists alone
	AskedAt     time.Time // when GitHub was asked for the newest answer, our clock

	// PassedOver is how many runners of ours listened for it in vain since it was queued:
	// GitHub kept it queued all the while.
	PassedOver int
	PassedAt   time.Time // the last time
}

// Repository returns owner/name, or the owner alone where nobody has named the repository.
func (j Job) Repository() string { return Scope{Owner: j.Owner, Repo: j.Repo}.String() }

// JobNews is what one delivery or one GET says of a job.
type JobNews struct {
	Event JobEvent
	Job   Job       // State is ignored: the table decides it
	Asked time.Time // when GitHub was asked, our clock; zero for a delivery
}

// eventFor returns what the news amounts to for a job. An answer that was asked for
// before the newest news is not authoritative: like a delivery it moves a job only
// forward.
func (n JobNews) eventFor(j Job) JobEvent {
	overtaken := !n.Asked.IsZero() && (!n.Asked.After(j.ToldAt) || n.Asked.Before(j.AskedAt))
	if overtaken {
		return JobEvent(strings.Replace(string(n.Event), "seen_", "told_", 1))
	}
	return n.Event
}

// Learn returns the job after the news, at our time now. Facts that the news
// lacks are kept; of a completed job late news can only fill what is missing.
func (j Job) Learn(n JobNews, now time.Time) Job {
	next := n.Job
	next.State = j.State.Next(n.eventFor(j))
	next.HeardAt, next.QueuedAt, next.StartedAt, next.CompletedAt = j.HeardAt, j.QueuedAt, j.StartedAt, j.CompletedAt
	setOnce(&next.HeardAt, now)
	next.ToldAt, next.AskedAt = j.ToldAt, j.AskedAt
	next.PassedOver, next.PassedAt = j.PassedOver, j.PassedAt
	if n.Asked.IsZero() {
		next.ToldAt = now
	} else if n.Asked.After(j.AskedAt) {
		next.AskedAt = n.Asked
	}
	if j.State == JobCompleted {
		next.RunnerName = cmp.Or(j.RunnerName, next.RunnerName)
		next.Conclusion = cmp.Or(j.Conclusion, next.Conclusion)
	}
	next.keep(j)
	switch next.State {
	case JobQueued:
		setOnce(&next.QueuedAt, now)
		next.RunnerName, next.Conclusion = "", ""
	case JobInProgress:
		setOnce(&next.StartedAt, now)
		next.Conclusion = ""
		next.PassedOver, next.PassedAt = 0, time.Time{}
	case JobCompleted:
		setOnce(&next.CompletedAt, now)
	case JobUnknown, JobWaiting:
		next.RunnerName, next.Conclusion = "", ""
	}
	return next
}

// keep fills what news lacks with what was known.
func (j *Job) keep(was Job) {
	j.ID = cmp.Or(j.ID, was.ID)
	j.RunID, j.RunAttempt = cmp.Or(j.RunID, was.RunID), cmp.Or(j.RunAttempt, was.RunAttempt)
	j.InstallationID = cmp.Or(j.InstallationID, was.InstallationID)
	j.Owner, j.Repo = cmp.Or(j.Owner, was.Owner), cmp.Or(j.Repo, was.Repo)
	j.Workflow, j.Name, j.URL = cmp.Or(j.Workflow, was.Workflow), cmp.Or(j.Name, was.Name), cmp.Or(j.URL, was.URL)
	j.RunnerName, j.Visibility = cmp.Or(j.RunnerName, was.RunnerName), cmp.Or(j.Visibility, was.Visibility)
	j.Pool, j.SetKey = cmp.Or(j.Pool, was.Pool), cmp.Or(j.SetKey, was.SetKey)
	if len(j.Labels) == 0 {
		j.Labels = was.Labels
	}
	if !was.CreatedAt.IsZero() {
		j.CreatedAt = was.CreatedAt
	}
}

func setOnce(t *time.Time, now time.Time) {
	if t.IsZero() {
		*t = now
	}
}
