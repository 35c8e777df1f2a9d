// SPDX-License-Identifier: MIT

package webhook

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Bounds of what is taken over from a payload, in bytes where GitHub states none.
const (
	maxWord   = 64   // actions, statuses, conclusions, logins of events
	maxName   = 512  // names that people choose: longer ones are cut
	maxURL    = 2048 // left out if longer
	maxReason = 1024
	maxLabels = 100 // GitHub's limit for one runner, and so for what a job can ask
	maxLabel  = 256
)

type jobPart struct {
	ID           int64    `json:"id"`
	RunID        int64    `json:"run_id"`
	RunAttempt   int      `json:"run_attempt"`
	Status       string   `json:"status"`
	Conclusion   *string  `json:"conclusion"`
	Name         string   `json:"name"`
	WorkflowName *string  `json:"workflow_name"`
	HTMLURL      string   `json:"html_url"`
	CreatedAt    string   `json:"created_at"`
	Labels       []string `json:"labels"`
	RunnerName   *string  `json:"runner_name"`
	RunnerID     *int64   `json:"runner_id"`
}

// readJob reads a workflow_job event.
func (e event) readJob(read *reading) verdict {
	var p jobPart
	if err := e.part("workflow_job", e.Job, &p); err != nil {
		return failed("%v", err)
	}
	news, v := jobEvent(e.Action, p.Status)
	if v.status != fleet.DeliveryProcessed {
		return v
	}
	labels, labelsErr := labels(p.Labels)
	created, createdErr := created(p.CreatedAt)
	err := errors.Join(
		read.atRepository(),
		positive("workflow_job.id", p.ID), positive("workflow_job.run_id", p.RunID),
		notNegative("workflow_job.run_attempt", p.RunAttempt),
		labelsErr, createdErr,
	)
	if err != nil {
		return failed("%v", err)
	}
	read.job = &fleet.JobNews{Event: news, Job: fleet.Job{
		ID: fleet.JobID(p.ID), RunID: p.RunID, RunAttempt: max(p.RunAttempt, 1),
		InstallationID: read.installationID,
		Owner:          read.repo.Owner, Repo: read.repo.Repo,
		Workflow: clean(text(p.WorkflowName), maxName), Name: clean(p.Name, maxName),
		Labels:     labels,
		Visibility: read.visibility,
		Conclusion: clean(text(p.Conclusion), maxWord),
		RunnerName: clean(text(p.RunnerName), maxName), RunnerID: number(p.RunnerID),
		URL: address(p.HTMLURL), CreatedAt: created,
	}}
	return processed()
}

// jobEvent tells what an action and the status beside it mean. A job that waits
// for an approval is announced as queued too, with the status waiting: it is
// demand only once it comes as queued with the status queued.
func jobEvent(action, status string) (fleet.JobEvent, verdict) {
	switch status {
	case "queued", "in_progress", "completed", "waiting", "requested", "pending":
	default:
		return "", failed("workflow_job.status %q is not one of a job", clean(status, maxWord))
	}
	switch action {
	case "queued":
		switch status {
		case "queued":
			return fleet.ToldQueued, processed()
		case "waiting", "requested", "pending":
			return fleet.ToldWaiting, processed()
		}
	case "waiting":
		return fleet.ToldWaiting, processed()
	case "in_progress":
		if status == "in_progress" || status == "queued" {
			return fleet.ToldInProgress, processed()
		}
	case "completed":
		return fleet.ToldCompleted, processed()
	default:
		return "", ignored("action %q of workflow_job is not one that Minifleet handles", clean(action, maxWord))
	}
	return "", ignored("action %s with the status %s says nothing of its own", action, status)
}

type runPart struct {
	ID             int64           `json:"id"`
	RunAttempt     int             `json:"run_attempt"`
	Event          string          `json:"event"`
	Status         string          `json:"status"`
	Conclusion     *string         `json:"conclusion"`
	HeadRepository *repositoryPart `json:"head_repository"`
	Actor          *accountPart    `json:"actor"`
	Triggering     *accountPart    `json:"triggering_actor"`
}

// readRun reads a workflow_run event.
func (e event) readRun(read *reading) verdict {
	switch e.Action {
	case "requested", "in_progress", "completed":
	default:
		return ignored("action %q of workflow_run is not one that Minifleet handles", clean(e.Action, maxWord))
	}
	var p runPart
	if err := e.part("workflow_run", e.Run, &p); err != nil {
		return failed("%v", err)
	}
	var head fleet.Scope
	var headErr error
	if p.HeadRepository != nil {
		head, headErr = repository(p.HeadRepository.FullName)
	}
	err := errors.Join(
		read.atRepository(),
		positive("workflow_run.id", p.ID), notNegative("workflow_run.run_attempt", p.RunAttempt),
		headErr,
	)
	if err != nil {
		return failed("%v", err)
	}
	run := &fleet.Run{
		ID: p.ID, Attempt: max(p.RunAttempt, 1), Repository: read.repo.String(), Visibility: read.visibility,
		Event: clean(p.Event, maxWord), HeadRepository: head.String(),
		// What matters is whether the code comes from elsewhere. GitHub's own fork
		// flag also marks a repository that is a fork and runs its own code, and a
		// head that is deleted has no flag at all.
		Fork:   head.Key() != read.repo.Key(),
		Status: clean(p.Status, maxWord), Conclusion: clean(text(p.Conclusion), maxWord),
	}
	if p.Actor != nil {
		run.Actor = clean(p.Actor.Login, maxName)
	}
	if p.Triggering != nil {
		run.TriggeringActor = clean(p.Triggering.Login, maxName)
	}
	read.run = run
	return processed()
}

type accountPart struct {
	Login string `json:"login"`
	Slug  string `json:"slug"` // an enterprise has this instead
}

type installationPart struct {
	ID          int64        `json:"id"`
	AppID       int64        `json:"app_id"`
	Account     *accountPart `json:"account"`
	SuspendedAt *string      `json:"suspended_at"`
}

// readInstallation reads an installation event.
func (e event) readInstallation(read *reading) verdict {
	switch e.Action {
	case "created", "deleted", "suspend", "unsuspend", "new_permissions_accepted":
	default:
		return ignored("action %q of installation is not one that Minifleet handles", clean(e.Action, maxWord))
	}
	in, err := e.installation()
	if err != nil {
		return failed("%v", err)
	}
	switch e.Action {
	case "deleted":
		in.Deleted = true
	case "suspend":
		in.Suspended = true
	case "unsuspend":
		in.Suspended = false
	}
	read.installation = in
	return processed()
}

// readInstallationRepositories reads an installation_repositories event. Which
// repositories came or went is asked of GitHub when it matters; that the
// installation exists is news enough.
func (e event) readInstallationRepositories(read *reading) verdict {
	switch e.Action {
	case "added", "removed":
	default:
		return ignored("action %q of installation_repositories is not one that Minifleet handles", clean(e.Action, maxWord))
	}
	in, err := e.installation()
	if err != nil {
		return failed("%v", err)
	}
	read.installation = in
	return processed()
}

func (e event) installation() (*fleet.Installation, error) {
	if e.Installation == nil || e.Installation.ID <= 0 {
		return nil, errors.New("the payload names no installation")
	}
	in := &fleet.Installation{ID: e.Installation.ID, Suspended: text(e.Installation.SuspendedAt) != ""}
	if a := e.Installation.Account; a != nil {
		in.Account = clean(a.Login, maxName)
		if in.Account == "" {
			in.Account = clean(a.Slug, maxName)
		}
	}
	if in.Account == "" {
		return nil, fmt.Errorf("installation %d has no account", in.ID)
	}
	return in, nil
}

// part decodes the part of an event that the event is named after.
func (e event) part(name string, raw json.RawMessage, into any) error {
	if len(raw) == 0 || string(raw) == "null" {
		return fmt.Errorf("the payload has no %s", name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%s is not as GitHub describes it: %w", name, err)
	}
	return nil
}

// repository reads owner/name. It becomes part of URLs, so it must be one.
func repository(fullName string) (fleet.Scope, error) {
	scope, err := fleet.ParseScope(fullName)
	if err != nil || scope.Repo == "" {
		return fleet.Scope{}, fmt.Errorf("%q is not the full name of a repository", clean(fullName, maxName))
	}
	return scope, nil
}

func labels(list []string) (fleet.Labels, error) {
	if len(list) > maxLabels {
		return nil, fmt.Errorf("workflow_job has %d labels, no runner can have more than %d", len(list), maxLabels)
	}
	out := make([]string, 0, len(list))
	for _, l := range list {
		if len(l) > maxLabel {
			return nil, fmt.Errorf("workflow_job has a label of %d bytes, no runner can have one of more than %d", len(l), maxLabel)
		}
		out = append(out, clean(l, maxLabel))
	}
	return fleet.NewLabels(out...), nil
}

func created(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}, fmt.Errorf("workflow_job.created_at %q is not a time", clean(s, maxWord))
	}
	return t.UTC(), nil
}
