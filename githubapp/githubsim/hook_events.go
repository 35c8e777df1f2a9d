// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/minifleet/minifleet/secret"
)

const hookID = 510_000_001

// SetWebhook points the App's hook at a URL (empty: no deliveries). GitHub's
// ping follows. An empty secret leaves the secret as it is.
func (s *Sim) SetWebhook(url string, key secret.Text) error {
	if url != "" {
		if err := validURL("webhook URL", url); err != nil {
			return fmt.Errorf("set webhook: %w", err)
		}
	}
	s.hooks.mu.Lock()
	s.hooks.url, s.hooks.inactive = url, false
	if !key.Empty() {
		s.hooks.secret = key
	}
	s.hooks.mu.Unlock()
	if url != "" {
		s.ping()
	}
	return nil
}

// SetKindDeliveries switches deliveries alone to kind (in order, at once, once) or back.
func (s *Sim) SetKindDeliveries(kind bool) {
	s.hooks.mu.Lock()
	defer s.hooks.mu.Unlock()
	s.hooks.kind = kind
}

// Deliveries returns the attempts that have been made, oldest first.
func (s *Sim) Deliveries() []Delivery {
	kept := s.hooks.all()
	out := make([]Delivery, 0, len(kept))
	for _, d := range kept {
		out = append(out, d.Delivery)
	}
	return out
}

// WaitDelivered blocks until every delivery that is due has been made.
func (s *Sim) WaitDelivered(ctx context.Context) error {
	active := 0
	return s.await(ctx, "deliveries", func() {
		s.hooks.mu.Lock()
		defer s.hooks.mu.Unlock()
		active = s.hooks.active
	}, func() bool { return active == 0 })
}

// Redeliver sends a delivery again, under its GUID.
func (s *Sim) Redeliver(id int64) error {
	if !s.hooks.redeliver(id) {
		return fmt.Errorf("redeliver %d: %w", id, ErrNotFound)
	}
	return nil
}

// SendEvent delivers an event with any body, signed as all are: for what GitHub
// also sends and the Sim does not, such as unknown events, broken JSON, or
// events of installations that are not the App's.
func (s *Sim) SendEvent(event, action string, body []byte) {
	s.hooks.send(outgoing{guid: newGUID(), event: event, action: action, body: body})
}

// notify wakes those who wait for a change that is not under mu.
func (s *Sim) notify() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.change()
}

// sent notes when the first `queued` delivery of a job left.
func (s *Sim) sent(out outgoing, at time.Time) {
	if out.event != "workflow_job" || out.action != "queued" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.job(out.job); j != nil && j.webhookAt.IsZero() && j.status != "waiting" {
		j.webhookAt = at
	}
}

func (s *Sim) ping() {
	s.mu.Lock()
	defer s.mu.Unlock()
	base := s.base(nil)
	s.hooks.mu.Lock()
	url := s.hooks.url
	s.hooks.mu.Unlock()
	api, at := base+"/app/hook", stamp(time.Unix(1_700_000_000, 0))
	s.hooks.send(outgoing{guid: newGUID(), event: "ping", body: marshal(object{
		"zen": "Keep it logically awesome.", "hook_id": hookID, "hook": object{
			"type": "App", "id": hookID, "name": "web", "active": true, "app_id": s.opt.AppID, "events": append([]string{}, s.app.events...),
			"config":     object{"content_type": "json", "url": url, "insecure_ssl": "0", "secret": "********"},
			"updated_at": at, "created_at": at, "url": api + "/config", "ping_url": api + "/pings", "deliveries_url": api + "/deliveries",
		},
	})})
}

// emit sends an event of a repository, if an installation covers it. The caller holds mu.
func (s *Sim) emit(event, action string, repo *repository, sender *account, payload object, out outgoing) {
	in := s.installationFor(repo)
	if in == nil || !in.suspendedAt.IsZero() || !slices.Contains(s.app.events, event) {
		return
	}
	base := s.base(nil)
	payload["action"] = action
	payload["repository"] = repo.hookView(base)
	payload["sender"] = sender.view(base)
	payload["installation"] = object{"id": in.id, "node_id": nodeID("MDIzOkludGVncmF0aW9uSW5zdGFsbGF0aW9u", in.id)}
	if repo.owner.org {
		payload["organization"] = repo.owner.organizationView(base)
	}
	out.guid, out.event, out.action, out.body, out.install, out.repo = newGUID(), event, action, marshal(payload), in.id, repo.id
	s.hooks.send(out)
}

func (s *Sim) emitJob(action string, j *job) {
	base := s.base(nil)
	payload := object{"workflow_job": j.view(base)}
	if j.spec.Gated {
		payload["deployment"] = s.deploymentView(base, j)
	}
	s.emit("workflow_job", action, j.run.repo, j.run.actor, payload, outgoing{job: j.id, run: j.run.id})
}

func (s *Sim) emitRun(action string, r *run) {
	base := s.base(nil)
	s.emit("workflow_run", action, r.repo, r.actor, object{"workflow_run": r.hookView(base), "workflow": r.workflowView(base)}, outgoing{run: r.id})
}

func (s *Sim) deploymentView(base string, j *job) object {
	repo := base + "/repos/" + j.run.repo.fullName()
	api := fmt.Sprintf("%s/deployments/%d", repo, j.id)
	return object{
		"url": api, "id": j.id, "node_id": nodeID("DE", j.id), "sha": j.run.sha, "ref": j.run.workflow.Branch, "task": "deploy", "payload": object{},
		"original_environment": "production", "environment": "production", "description": nil, "creator": j.run.actor.view(base),
		"created_at": s.clock.stamp(j.createdAt), "updated_at": s.clock.stamp(j.createdAt), "statuses_url": api + "/statuses", "repository_url": repo,
	}
}

func (s *Sim) emitInstallation(action string, in *installation) {
	base := s.base(nil)
	repos := []object{}
	for _, repo := range s.reposOf(in) {
		repos = append(repos, repo.shortView())
	}
	payload := object{"action": action, "installation": in.view(s, base), "sender": s.account("octocat", false).view(base), "repositories": repos}
	s.hooks.send(outgoing{guid: newGUID(), event: "installation", action: action, body: marshal(payload), install: in.id})
}

func (s *Sim) emitRepositories(action string, in *installation, repos []*repository) {
	if len(repos) == 0 {
		return
	}
	base := s.base(nil)
	lists := map[string][]object{"added": {}, "removed": {}}
	for _, repo := range repos {
		lists[action] = append(lists[action], repo.shortView())
	}
	s.hooks.send(outgoing{guid: newGUID(), event: "installation_repositories", action: action, install: in.id, body: marshal(object{
		"action": action, "installation": in.view(s, base), "repository_selection": in.selection(), "requester": nil,
		"repositories_added": lists["added"], "repositories_removed": lists["removed"], "sender": s.account("octocat", false).view(base),
	})})
}
