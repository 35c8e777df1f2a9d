// SPDX-License-Identifier: MIT

package githubsim

import (
	"slices"
	"strings"
	"time"
)

// Run is a workflow run as it was when the Sim was asked.
type Run struct {
	ID         int64   `json:"id"`
	Repo       string  `json:"repo"`
	Name       string  `json:"name"`
	Event      string  `json:"event"`
	Attempt    int     `json:"attempt"`
	Status     string  `json:"status"`
	Conclusion string  `json:"conclusion,omitempty"`
	JobIDs     []int64 `json:"job_ids"` // of the latest attempt, in the workflow's order
}

// Job is a job as it was when the Sim was asked. A time that has not come is zero.
type Job struct {
	ID         int64     `json:"id"`
	RunID      int64     `json:"run_id"`
	Attempt    int       `json:"attempt"`
	Repo       string    `json:"repo"`
	Name       string    `json:"name"`
	Labels     []string  `json:"labels"`
	Status     string    `json:"status"`               // waiting, queued, in_progress, completed
	Conclusion string    `json:"conclusion,omitempty"` // success, failure, cancelled, skipped
	RunnerID   int64     `json:"runner_id,omitempty"`
	RunnerName string    `json:"runner_name,omitempty"`
	Assigned   bool      `json:"assigned,omitempty"` // offered to a runner that has not taken it yet
	Attempts   int       `json:"attempts,omitempty"` // how often it was offered
	CreatedAt  time.Time `json:"created_at,omitzero"`
	QueuedAt   time.Time `json:"queued_at,omitzero"`  // became demand
	WebhookAt  time.Time `json:"webhook_at,omitzero"` // the first `queued` delivery was sent
	OnlineAt   time.Time `json:"online_at,omitzero"`  // its runner opened its session
	StartedAt  time.Time `json:"started_at,omitzero"` // its runner took it
	DoneAt     time.Time `json:"done_at,omitzero"`
	Steps      []JobStep `json:"steps,omitempty"`
	Renewals   int       `json:"renewals,omitempty"` // of its lock
	Logs       string    `json:"logs,omitempty"`     // as uploaded by the runner
	Feed       []string  `json:"feed,omitempty"`     // live lines
	Reason     string    `json:"reason,omitempty"`   // why GitHub itself ended it
}

// JobStep is a step as the runner reported it.
type JobStep struct {
	Number      int       `json:"number"`
	Name        string    `json:"name"`
	Status      string    `json:"status"`               // queued, in_progress, completed
	Conclusion  string    `json:"conclusion,omitempty"` // success, failure, cancelled, skipped
	StartedAt   time.Time `json:"started_at,omitzero"`
	CompletedAt time.Time `json:"completed_at,omitzero"`
}

// Done reports whether the job has completed.
func (j Job) Done() bool { return j.Status == "completed" }

// Running reports whether a runner has taken the job and not finished it.
func (j Job) Running() bool { return j.Status == "in_progress" }

// Runner is a registration as it was when the Sim was asked, removed ones included.
type Runner struct {
	ID         int64     `json:"id"`
	Name       string    `json:"name"`
	Scope      string    `json:"scope"` // owner, or owner/name
	Labels     []string  `json:"labels"`
	GroupID    int64     `json:"group_id"`
	Status     string    `json:"status"` // online, offline
	JobID      int64     `json:"job_id,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	OnlineAt   time.Time `json:"online_at,omitzero"` // first session
	RemovedAt  time.Time `json:"removed_at,omitzero"`
	RemovedWhy string    `json:"removed_why,omitempty"`
}

// Delivery is one attempt to deliver a webhook.
type Delivery struct {
	ID          int64         `json:"id"`
	GUID        string        `json:"guid"`
	Event       string        `json:"event"`
	Action      string        `json:"action,omitempty"`
	Redelivery  bool          `json:"redelivery,omitempty"`
	Repeat      bool          `json:"repeat,omitempty"` // sent a second time by misbehaviour
	DeliveredAt time.Time     `json:"delivered_at"`
	Duration    time.Duration `json:"duration"`
	Status      string        `json:"status"`
	StatusCode  int           `json:"status_code"`
	JobID       int64         `json:"job_id,omitempty"`
	RunID       int64         `json:"run_id,omitempty"`
	Payload     string        `json:"payload,omitempty"`
}

// Request is one REST call that the Sim has answered.
type Request struct {
	At     time.Time `json:"at"`
	Method string    `json:"method"`
	Path   string    `json:"path"`
	Status int       `json:"status"` // 0: no answer was given
	Fault  string    `json:"fault,omitempty"`
}

func (j *job) snapshot() Job {
	out := Job{
		ID: j.id, RunID: j.run.id, Attempt: j.attempt, Repo: j.run.repo.fullName(), Name: j.spec.Name,
		Labels: slices.Clone(j.spec.Labels), Status: j.publicStatus(), Conclusion: j.conclusion,
		RunnerID: j.runnerID, RunnerName: j.runnerName, Assigned: j.status == statusAssigned, Attempts: j.offers,
		CreatedAt: j.createdAt, QueuedAt: j.queuedAt, WebhookAt: j.webhookAt, OnlineAt: j.onlineAt, StartedAt: j.startedAt,
		DoneAt: j.completedAt, Renewals: j.renewals, Logs: j.logText(), Feed: slices.Clone(j.feed), Reason: j.reason,
	}
	for _, st := range j.sortedSteps() {
		out.Steps = append(out.Steps, *st)
	}
	return out
}

func (r *run) snapshot() Run {
	out := Run{
		ID: r.id, Repo: r.repo.fullName(), Name: r.workflow.Name, Event: r.workflow.Event,
		Attempt: len(r.attempts), Status: r.status, Conclusion: r.conclusion,
	}
	for _, j := range r.latest() {
		out.JobIDs = append(out.JobIDs, j.id)
	}
	return out
}

func (r *runner) snapshot(now time.Time, offlineAfter time.Duration) Runner {
	out := Runner{
		ID: r.id, Name: r.name, Scope: r.scope.String(), Labels: slices.Clone(r.labels), GroupID: r.groupID,
		Status: r.status(now, offlineAfter), CreatedAt: r.createdAt, OnlineAt: r.onlineAt, RemovedAt: r.removedAt, RemovedWhy: r.removedWhy,
	}
	if r.job != nil {
		out.JobID = r.job.id
	}
	return out
}

// logText is the log of the whole job if the runner sent one, else the step logs in order of arrival.
func (j *job) logText() string {
	if log, ok := j.logs[j.jobLog]; ok && j.jobLog != "" {
		return log.String()
	}
	var b strings.Builder
	for _, id := range j.logOrder {
		b.WriteString(j.logs[id].String())
	}
	return b.String()
}
