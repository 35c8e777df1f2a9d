// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"maps"
)

// hookView is a run as webhooks show it; REST shows all of it and a little more.
func (r *run) hookView(base string) object {
	api := fmt.Sprintf("%s/repos/%s/actions/runs/%d", base, r.repo.fullName(), r.id)
	suite := r.id + 1
	return object{
		"id": r.id, "name": r.workflow.Name, "node_id": nodeID("WFR", r.id), "head_branch": r.workflow.Branch, "head_sha": r.sha,
		"path": r.workflowPath(), "display_title": r.title(), "run_number": r.number, "event": r.workflow.Event,
		"status": r.status, "conclusion": orNil(r.conclusion), "workflow_id": r.workflowID,
		"check_suite_id": suite, "check_suite_node_id": nodeID("CS", suite),
		"url": api, "html_url": fmt.Sprintf("%s/%s/actions/runs/%d", base, r.repo.fullName(), r.id), "pull_requests": []any{},
		"created_at": r.repo.clock.stamp(r.createdAt), "updated_at": r.repo.clock.stamp(r.updatedAt), "run_started_at": r.repo.clock.stamp(r.startedAt),
		"actor": r.actor.view(base), "triggering_actor": r.startedBy[len(r.startedBy)-1].view(base), "run_attempt": len(r.attempts), "referenced_workflows": []any{},
		"jobs_url": api + "/jobs", "logs_url": api + "/logs", "artifacts_url": api + "/artifacts", "cancel_url": api + "/cancel", "rerun_url": api + "/rerun",
		"check_suite_url":      fmt.Sprintf("%s/repos/%s/check-suites/%d", base, r.repo.fullName(), suite),
		"workflow_url":         fmt.Sprintf("%s/repos/%s/actions/workflows/%d", base, r.repo.fullName(), r.workflowID),
		"previous_attempt_url": r.previousURL(api), "repository": r.repo.minimalView(base), "head_repository": r.headRepo.minimalView(base),
		"head_commit": object{
			"id": r.sha, "tree_id": r.sha, "message": r.title(), "timestamp": r.repo.clock.stamp(r.createdAt),
			"author":    object{"name": r.actor.login, "email": r.actor.login + "@users.noreply.github.com"},
			"committer": object{"name": "GitHub", "email": "noreply@github.com"},
		},
	}
}

func (r *run) view(base string) object {
	v := r.hookView(base)
	maps.Copy(v, object{"head_repository_id": r.headRepo.id})
	return v
}

func (r *run) title() string { return "Change " + r.sha[:7] }

func (r *run) workflowPath() string { return ".github/workflows/" + r.workflow.Name + ".yml" }

func (r *run) previousURL(api string) any {
	if len(r.attempts) < 2 {
		return nil
	}
	return fmt.Sprintf("%s/attempts/%d", api, len(r.attempts)-1)
}

func (r *run) workflowView(base string) object {
	api := fmt.Sprintf("%s/repos/%s/actions/workflows/%d", base, r.repo.fullName(), r.workflowID)
	html := base + "/" + r.repo.fullName()
	return object{
		"id": r.workflowID, "node_id": nodeID("W", r.workflowID), "name": r.workflow.Name, "path": r.workflowPath(), "state": "active",
		"created_at": r.repo.clock.stamp(r.repo.createdAt), "updated_at": r.repo.clock.stamp(r.repo.createdAt), "url": api,
		"html_url": html + "/blob/main/" + r.workflowPath(), "badge_url": html + "/workflows/" + r.workflow.Name + "/badge.svg",
	}
}

// view is a job, alike in REST and in webhooks.
func (j *job) view(base string) object {
	repo, clock := j.run.repo.fullName(), j.run.repo.clock
	api := base + "/repos/" + repo
	v := object{
		"id": j.id, "run_id": j.run.id, "workflow_name": j.run.workflow.Name, "head_branch": j.run.workflow.Branch,
		"run_url": fmt.Sprintf("%s/actions/runs/%d", api, j.run.id), "run_attempt": j.attempt, "node_id": nodeID("CR", j.id), "head_sha": j.run.sha,
		"url": fmt.Sprintf("%s/actions/jobs/%d", api, j.id), "html_url": fmt.Sprintf("%s/%s/actions/runs/%d/job/%d", base, repo, j.run.id, j.id),
		"status": j.publicStatus(), "conclusion": orNil(j.conclusion), "created_at": clock.stamp(j.createdAt), "started_at": clock.stamp(j.createdAt),
		"completed_at": clock.stampOrNil(j.completedAt), "name": j.spec.Name, "steps": j.stepsView(), "labels": append([]string{}, j.spec.Labels...),
		"check_run_url": fmt.Sprintf("%s/check-runs/%d", api, j.id),
		"runner_id":     nil, "runner_name": nil, "runner_group_id": nil, "runner_group_name": nil,
	}
	switch {
	case j.runnerID != 0:
		v["started_at"] = clock.stamp(j.startedAt)
		v["runner_id"], v["runner_name"], v["runner_group_id"], v["runner_group_name"] = j.runnerID, j.runnerName, j.groupID, j.groupName
	case j.done() && j.id%2 == 0: // a job that never ran shows its missing runner in two ways
		v["runner_id"], v["runner_name"] = 0, ""
	}
	return v
}

func (j *job) stepsView() []object {
	out, clock := []object{}, j.run.repo.clock
	if j.status == "in_progress" && len(j.steps) == 0 {
		out = append(out, object{"name": "Set up job", "status": "in_progress", "conclusion": nil, "number": 1, "started_at": clock.stamp(j.startedAt), "completed_at": nil})
	}
	for _, st := range j.sortedSteps() {
		v := object{"name": st.Name, "status": st.Status, "conclusion": orNil(st.Conclusion), "number": st.Number, "started_at": nil, "completed_at": nil}
		if st.Status != "queued" {
			v["started_at"] = clock.stamp(st.StartedAt)
		}
		if st.Status == "completed" {
			v["completed_at"] = clock.stamp(st.CompletedAt)
		}
		out = append(out, v)
	}
	return out
}
