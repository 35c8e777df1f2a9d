// SPDX-License-Identifier: MIT

package githubsim

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

func (s *Sim) appRoutes() []route {
	return []route{
		{"GET /app", appOnly, false, under(func(c *call) *answer { return ok(s.appView(c.base)) })},
		{"POST /app-manifests/{code}/conversions", anyone, false, s.convertManifest},
		{"GET /app/installations", appOnly, false, under(s.listInstallations)},
		{"GET /app/installations/{id}", appOnly, false, under(s.getInstallation)},
		{"DELETE /app/installations/{id}", appOnly, false, under(s.deleteInstallation)},
		{"POST /app/installations/{id}/access_tokens", appOnly, false, under(s.createToken)},
		{"GET /orgs/{owner}/installation", appOnly, false, under(s.findInstallation)},
		{"GET /users/{owner}/installation", appOnly, false, under(s.findInstallation)},
		{"GET /repos/{owner}/{repo}/installation", appOnly, false, under(s.findInstallation)},
		{"GET /installation/repositories", installationOnly, false, under(s.listRepositories)},
	}
}

func (s *Sim) listInstallations(c *call) *answer {
	all := make([]object, 0, len(s.installs))
	for _, in := range s.installs {
		v := in.view(s, c.base)
		// GitHub describes the accounts of this one list as user and enterprise at once.
		maps.Copy(v["account"].(object), object{
			"name": in.account.login, "slug": in.account.login, "created_at": s.clock.stamp(in.createdAt), "updated_at": s.clock.stamp(in.createdAt),
		})
		all = append(all, v)
	}
	items, header := page(c, all)
	return &answer{status: http.StatusOK, list: items, header: header}
}

func (s *Sim) getInstallation(c *call) *answer {
	in := s.installation(c.idPath("id"))
	if in == nil {
		return notFound()
	}
	return ok(in.view(s, c.base))
}

func (s *Sim) deleteInstallation(c *call) *answer {
	in := s.installation(c.idPath("id"))
	if in == nil {
		return notFound()
	}
	s.uninstall(in)
	return &answer{status: http.StatusNoContent}
}

func (s *Sim) findInstallation(c *call) *answer {
	acc := s.accounts[strings.ToLower(c.PathValue("owner"))]
	if acc == nil || strings.HasPrefix(c.URL.Path, "/orgs/") && !acc.org {
		return notFound()
	}
	in := s.installationOf(acc)
	if name := c.PathValue("repo"); name != "" && in != nil {
		if repo := s.repos[strings.ToLower(acc.login+"/"+name)]; repo == nil || !in.covers(repo) {
			return notFound()
		}
	}
	if in == nil {
		return notFound()
	}
	return ok(in.view(s, c.base))
}

func (s *Sim) createToken(c *call) *answer {
	if s.repeatedJWT(bearer(c.Request)) {
		return notFound()
	}
	in := s.installation(c.idPath("id"))
	if in == nil {
		return notFound()
	}
	if !in.suspendedAt.IsZero() {
		return fail(http.StatusForbidden, "This installation has been suspended")
	}
	var want struct {
		Repositories  []string          `json:"repositories"`
		RepositoryIDs []int64           `json:"repository_ids"`
		Permissions   map[string]string `json:"permissions"`
	}
	if bad := c.decode(&want); bad != nil {
		return bad
	}
	t := &accessToken{install: in, expires: c.now.Add(s.timing.InstallationToken).Truncate(time.Second), permissions: maps.Clone(in.permissions)}
	if len(want.Permissions) > 0 {
		t.permissions = map[string]string{}
		for name, level := range want.Permissions {
			if have := in.permissions[name]; have != level && have != "write" {
				return invalid("The permissions requested are not granted to this installation.")
			}
			t.permissions[name] = level
		}
		t.permissions["metadata"] = "read"
	}
	body := object{"expires_at": s.clock.stamp(t.expires), "permissions": t.permissions, "repository_selection": in.selection()}
	if len(want.Repositories)+len(want.RepositoryIDs) > 0 {
		chosen := s.choose(in, want.Repositories, want.RepositoryIDs)
		if chosen == nil {
			return invalid("There is at least one repository that does not exist or is not accessible to the parent installation.")
		}
		t.repos = map[int64]bool{}
		list := []object{}
		for _, repo := range chosen {
			t.repos[repo.id] = true
			list = append(list, repo.hookView(c.base))
		}
		body["repositories"], body["repository_selection"] = list, "selected"
	}
	token := newToken("ghs_")
	maps.DeleteFunc(s.tokens, func(_ string, t *accessToken) bool { return c.now.After(t.expires) })
	s.tokens[token] = t
	body["token"] = token
	return &answer{status: http.StatusCreated, body: body}
}

// invalid is GitHub's long validation error.
func invalid(message string) *answer {
	return &answer{status: http.StatusUnprocessableEntity, body: object{"message": message, "documentation_url": docsURL, "errors": []object{}}}
}

// choose finds repositories by name and id; nil if one is not the installation's.
func (s *Sim) choose(in *installation, names []string, ids []int64) []*repository {
	all := s.reposOf(in)
	var out []*repository
	for _, name := range names {
		i := slices.IndexFunc(all, func(r *repository) bool { return strings.EqualFold(r.name, name) })
		if i < 0 {
			return nil
		}
		out = append(out, all[i])
	}
	for _, id := range ids {
		i := slices.IndexFunc(all, func(r *repository) bool { return r.id == id })
		if i < 0 {
			return nil
		}
		out = append(out, all[i])
	}
	return out
}

func (s *Sim) listRepositories(c *call) *answer {
	all := slices.DeleteFunc(s.reposOf(c.who.token.install), func(r *repository) bool { return !c.who.token.covers(r) })
	items, header := page(c, all)
	list := []object{}
	for _, repo := range items {
		list = append(list, repo.hookView(c.base))
	}
	return &answer{status: http.StatusOK, header: header, body: object{
		"total_count": len(all), "repositories": list, "repository_selection": c.who.token.install.selection(),
	}}
}

// repo finds the repository of a call's path, if the caller may see it and has
// the permission that the call needs.
func (s *Sim) repo(c *call, permission, level string) (*repository, *answer) {
	repo := s.repos[strings.ToLower(c.PathValue("owner")+"/"+c.PathValue("repo"))]
	if repo == nil || !c.who.token.covers(repo) {
		return nil, notFound()
	}
	if !c.who.may(permission, level) {
		return nil, fail(http.StatusForbidden, "Resource not accessible by integration")
	}
	return repo, nil
}

func (s *Sim) getRepo(c *call) *answer {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo, bad := s.repo(c, "metadata", "read")
	if bad != nil {
		return bad
	}
	return ok(repo.fullView(c.base))
}

func (s *Sim) getMeta(*call) *answer {
	return ok(object{"verifiable_password_authentication": false, "hooks": []string{"127.0.0.0/8", "::1/128"}, "api": []string{"127.0.0.0/8"}})
}

func (s *Sim) getRateLimit(c *call) *answer {
	core := s.limits.view(c.who.bucket())
	idle := func(limit int) object {
		return object{"limit": limit, "remaining": limit, "used": 0, "reset": s.clock.of(c.now).Add(time.Hour).Unix()}
	}
	return ok(object{"rate": core, "resources": object{
		"core": core, "search": idle(30), "graphql": idle(5000), "actions_runner_registration": idle(registrationPool),
	}})
}
