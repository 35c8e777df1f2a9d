// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

// GetJob returns what GitHub now says of a job, and false if there is no such
// job. It is authoritative: newer than any delivery received before the call.
func (a *App) GetJob(ctx context.Context, owner, repo string, id fleet.JobID) (fleet.JobNews, bool, error) {
	scope := fleet.Scope{Owner: owner, Repo: repo}
	what := fmt.Sprintf("get job %d of %s", id, scope)
	if repo == "" {
		return fleet.JobNews{}, false, fmt.Errorf("%s: a job belongs to a repository", what)
	}
	var found *github.WorkflowJob
	var installationID int64
	asked := a.now()
	err := a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		installationID = in.id
		found, _, err = in.client.Actions.GetWorkflowJobByID(ctx, owner, repo, int64(id))
		return err
	})
	if missing(err) {
		return fleet.JobNews{}, false, nil
	}
	if err != nil {
		return fleet.JobNews{}, false, err
	}
	if found.GetID() != int64(id) {
		return fleet.JobNews{}, false, fmt.Errorf("%s: GitHub's answer is about job %d", what, found.GetID())
	}
	news, err := newsOf(found, scope, installationID, asked)
	if err != nil {
		return fleet.JobNews{}, false, fmt.Errorf("%s: %w", what, err)
	}
	return news, true, nil
}

// newsOf reads a job of GitHub's answer to what was asked then.
func newsOf(found *github.WorkflowJob, repo fleet.Scope, installationID int64, asked time.Time) (fleet.JobNews, error) {
	if found.GetID() <= 0 || found.GetRunID() <= 0 {
		return fleet.JobNews{}, fmt.Errorf("GitHub's answer is about job %d of run %d", found.GetID(), found.GetRunID())
	}
	event, err := seen(found.GetStatus())
	if err != nil {
		return fleet.JobNews{}, err
	}
	return fleet.JobNews{Event: event, Asked: asked, Job: fleet.Job{
		ID: fleet.JobID(found.GetID()), RunID: found.GetRunID(), RunAttempt: int(max(found.GetRunAttempt(), 1)), InstallationID: installationID,
		Owner: repo.Owner, Repo: repo.Repo,
		Workflow: printable(found.GetWorkflowName(), 512), Name: printable(found.GetName(), 512),
		Labels:     fleet.NewLabels(found.Labels...),
		Conclusion: printable(found.GetConclusion(), 64), RunnerName: printable(found.GetRunnerName(), 512), RunnerID: found.GetRunnerID(),
		URL: webAddress(found.GetHTMLURL()), CreatedAt: found.GetCreatedAt().UTC(),
	}}, nil
}

// seen maps a status to what it means for demand. The statuses before queued,
// of which the webhook knows only waiting, are all not demand yet.
func seen(status string) (fleet.JobEvent, error) {
	state := fleet.JobState(status)
	if status == "requested" || status == "pending" {
		state = fleet.JobWaiting
	}
	event, ok := fleet.Seen(state)
	if !ok {
		return "", fmt.Errorf("status %q is not one of a job", printable(status, 64))
	}
	return event, nil
}

func webAddress(s string) string {
	if len(s) > 2048 || printable(s, 2048) != s || !(strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")) {
		return ""
	}
	return s
}
