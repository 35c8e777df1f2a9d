// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"maps"
	"time"
)

// appView is the App. The caller holds mu.
func (s *Sim) appView(base string) object {
	return object{
		"id": s.opt.AppID, "slug": s.app.slug, "node_id": nodeID("A", s.opt.AppID), "client_id": fmt.Sprintf("Iv1.%016x", s.opt.AppID),
		"owner": s.account(s.app.owner, !s.app.ownerIsUser).view(base), "name": s.app.name, "description": nil, "external_url": base,
		"html_url": base + "/apps/" + s.app.slug, "created_at": stamp(time.Unix(1_700_000_000, 0)), "updated_at": stamp(time.Unix(1_700_000_000, 0)),
		"permissions": maps.Clone(s.app.permissions), "events": append([]string{}, s.app.events...), "installations_count": len(s.installs),
	}
}

// view is an installation, alike in REST and in webhooks.
func (in *installation) view(s *Sim, base string) object {
	kind, html := "User", fmt.Sprintf("%s/settings/installations/%d", base, in.id)
	if in.account.org {
		kind, html = "Organization", fmt.Sprintf("%s/organizations/%s/settings/installations/%d", base, in.account.login, in.id)
	}
	v := object{
		"id": in.id, "account": in.account.view(base), "repository_selection": in.selection(), "html_url": html,
		"access_tokens_url": fmt.Sprintf("%s/app/installations/%d/access_tokens", base, in.id), "repositories_url": base + "/installation/repositories",
		"app_id": s.opt.AppID, "app_slug": s.app.slug, "target_id": in.account.id, "target_type": kind,
		"permissions": maps.Clone(in.permissions), "events": append([]string{}, s.app.events...), "created_at": s.clock.stamp(in.createdAt), "updated_at": s.clock.stamp(in.updatedAt),
		"single_file_name": nil, "has_multiple_single_files": false, "single_file_paths": []string{}, "suspended_by": nil, "suspended_at": nil,
	}
	if !in.suspendedAt.IsZero() {
		v["suspended_by"], v["suspended_at"] = s.account("octocat", false).view(base), s.clock.stamp(in.suspendedAt)
	}
	return v
}

func (in *installation) selection() string {
	if in.all {
		return "all"
	}
	return "selected"
}

func (r *runner) view(now time.Time, offlineAfter time.Duration) object {
	labels := make([]object, 0, len(r.labels))
	for i, l := range r.labels {
		labels = append(labels, object{"id": i + 1, "name": l, "type": "custom"})
	}
	v := object{
		"id": r.id, "name": r.name, "os": orString(r.os, "unknown"), "status": r.status(now, offlineAfter), "busy": r.seemsBusy(now),
		"labels": labels, "runner_group_id": r.groupID, "ephemeral": true, "version": orNil(r.version),
	}
	return v
}

func (g *runnerGroup) view(base string, org *account) object {
	api := fmt.Sprintf("%s/orgs/%s/actions/runner-groups/%d", base, org.login, g.id)
	v := object{
		"id": g.id, "name": g.name, "visibility": g.visibility, "default": g.isDefault, "runners_url": api + "/runners", "inherited": false,
		"allows_public_repositories": g.allowPublic, "restricted_to_workflows": false, "selected_workflows": []string{}, "workflow_restrictions_read_only": false,
	}
	if g.visibility == "selected" {
		v["selected_repositories_url"] = api + "/repositories"
	}
	return v
}
