// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/trust"
)

// GetRun returns what GitHub says of one attempt of a run, and false if there is none: each
// attempt has an actor of its own. Attempt 0 is that of a job whose attempt nobody told, as
// those of scale sets: then it is the run as it is now, and of a fork nobody is named who
// began that attempt.
func (a *App) GetRun(ctx context.Context, owner, repo string, k fleet.RunKey) (fleet.Run, bool, error) {
	scope := fleet.Scope{Owner: owner, Repo: repo}
	what := fmt.Sprintf("get attempt %d of run %d of %s", k.Attempt, k.ID, scope)
	if repo == "" {
		return fleet.Run{}, false, fmt.Errorf("%s: a run belongs to a repository", what)
	}
	var found *github.WorkflowRun
	err := a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		if k.Attempt == 0 {
			found, _, err = in.client.Actions.GetWorkflowRunByID(ctx, owner, repo, k.ID)
			return err
		}
		found, _, err = in.client.Actions.GetWorkflowRunAttempt(ctx, owner, repo, k.ID, k.Attempt, nil)
		return err
	})
	if missing(err) {
		return fleet.Run{}, false, nil
	}
	if err != nil {
		return fleet.Run{}, false, err
	}
	if found.GetID() != k.ID || k.Attempt != 0 && found.GetRunAttempt() != k.Attempt {
		return fleet.Run{}, false, fmt.Errorf("%s: GitHub's answer is about attempt %d of run %d", what, found.GetRunAttempt(), found.GetID())
	}
	run, err := runOf(found, scope)
	if err != nil {
		return fleet.Run{}, false, fmt.Errorf("%s: %w", what, err)
	}
	if k.Attempt == 0 {
		if run.Attempt = 0; run.Fork {
			run.TriggeringActor = ""
		}
	}
	return run, true, nil
}

// runOf reads a run of GitHub's answer. A head that is gone is a fork: its code comes from
// elsewhere, and nobody knows where.
func runOf(found *github.WorkflowRun, repo fleet.Scope) (fleet.Run, error) {
	var head fleet.Scope
	if name := found.GetHeadRepository().GetFullName(); name != "" {
		var err error
		if head, err = fleet.ParseScope(name); err != nil {
			return fleet.Run{}, fmt.Errorf("its head repository: %w", err)
		}
	}
	run := fleet.Run{
		ID: found.GetID(), Attempt: found.GetRunAttempt(), Repository: repo.String(),
		Event: printable(found.GetEvent(), 64), HeadRepository: head.String(), Fork: head.Key() != repo.Key(),
		Actor: printable(found.GetActor().GetLogin(), 512), TriggeringActor: printable(found.GetTriggeringActor().GetLogin(), 512),
		Status: printable(found.GetStatus(), 64), Conclusion: printable(found.GetConclusion(), 64),
	}
	if of := found.Repository; of != nil && of.Private != nil {
		run.Visibility = trust.Public
		if of.GetPrivate() {
			run.Visibility = trust.Private
		}
	}
	return run, nil
}
