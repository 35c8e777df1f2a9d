// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

func (s *Sim) runnerRoutes() []route {
	var routes []route
	for _, base := range []string{"/orgs/{owner}", "/repos/{owner}/{repo}"} {
		runners := base + "/actions/runners"
		routes = append(
			routes,
			route{"GET " + runners, installationOnly, false, under(s.listRunners)},
			route{"POST " + runners + "/registration-token", installationOnly, false, under(s.registrationToken)},
			route{"GET " + runners + "/downloads", installationOnly, false, under(s.listDownloads)},
			route{"POST " + runners + "/generate-jitconfig", installationOnly, false, s.generateJIT},
			route{"GET " + runners + "/{id}", installationOnly, false, under(s.getRunner)},
			route{"DELETE " + runners + "/{id}", installationOnly, false, under(s.deleteRunner)},
		)
	}
	return append(
		routes,
		route{"POST /actions/runner-registration", anyone, false, under(s.registerClient)},
		route{"GET /orgs/{owner}/actions/runner-groups", installationOnly, false, under(s.listGroups)},
		route{"POST /orgs/{owner}/actions/runner-groups", installationOnly, false, under(s.createGroup)},
	)
}

// scope finds the organization or repository of a call's path, if the caller
// may manage runners there.
func (s *Sim) scope(c *call, level string) (scope, *answer) {
	if c.PathValue("repo") != "" {
		repo, bad := s.repo(c, "administration", level)
		if bad != nil {
			return scope{}, bad
		}
		return scope{owner: repo.owner, repo: repo}, nil
	}
	acc := s.accounts[strings.ToLower(c.PathValue("owner"))]
	if acc == nil || !acc.org || c.who.token.install.account != acc {
		return scope{}, notFound()
	}
	if !c.who.may("organization_self_hosted_runners", level) {
		return scope{}, fail(http.StatusForbidden, "Resource not accessible by integration")
	}
	return scope{owner: acc}, nil
}

func (s *Sim) listRunners(c *call) *answer {
	at, bad := s.scope(c, "read")
	if bad != nil {
		return bad
	}
	name := c.URL.Query().Get("name")
	var all []*runner
	for _, r := range s.runners {
		if r.scope == at && !r.removed() && !c.now.Before(r.listedAt) && (name == "" || r.name == name) {
			all = append(all, r)
		}
	}
	items, header := page(c, all)
	list := []object{}
	for _, r := range items {
		list = append(list, r.view(c.now, s.timing.OfflineAfter))
	}
	return &answer{status: http.StatusOK, header: header, body: object{"total_count": len(all), "runners": list}}
}

// registered finds the runner of a call's path.
func (s *Sim) registered(c *call, level string) (*runner, *answer) {
	at, bad := s.scope(c, level)
	if bad != nil {
		return nil, bad
	}
	id := c.idPath("id")
	i := slices.IndexFunc(s.runners, func(r *runner) bool { return r.id == id && r.scope == at && !r.removed() })
	if i < 0 {
		return nil, notFound()
	}
	return s.runners[i], nil
}

func (s *Sim) getRunner(c *call) *answer {
	r, bad := s.registered(c, "read")
	if bad != nil {
		return bad
	}
	return ok(r.view(c.now, s.timing.OfflineAfter))
}

// deleteRunner refuses for a busy runner. While `busy` lags it does not, and
// the job that the runner has just taken dies with the registration.
func (s *Sim) deleteRunner(c *call) *answer {
	r, bad := s.registered(c, "write")
	if bad != nil {
		return bad
	}
	if r.seemsBusy(c.now) {
		return unprocessable(fmt.Sprintf("Runner %q is currently running a job and cannot be deleted.", r.name))
	}
	if j := r.job; j != nil {
		s.withdraw(j)
		if !j.done() && j.status == "in_progress" {
			s.finish(j, "failure", "The runner was deleted while it ran the job.")
		}
	}
	s.remove(r, "deleted")
	r.signal() // a poll under way ends at once
	s.assign()
	return &answer{status: http.StatusNoContent}
}

func (s *Sim) listGroups(c *call) *answer {
	at, bad := s.scope(c, "read")
	if bad != nil {
		return bad
	}
	all := at.owner.groups
	if name := c.URL.Query().Get("visible_to_repository"); name != "" {
		repo := s.repos[strings.ToLower(at.owner.login+"/"+name)]
		all = slices.DeleteFunc(slices.Clone(all), func(g *runnerGroup) bool { return repo == nil || !g.admits(repo) })
	}
	items, header := page(c, all)
	list := []object{}
	for _, g := range items {
		list = append(list, g.view(c.base, at.owner))
	}
	return &answer{status: http.StatusOK, header: header, body: object{"total_count": len(all), "runner_groups": list}}
}

func (s *Sim) createGroup(c *call) *answer {
	at, bad := s.scope(c, "write")
	if bad != nil {
		return bad
	}
	var in struct {
		Name        string  `json:"name"`
		Visibility  string  `json:"visibility"`
		RepoIDs     []int64 `json:"selected_repository_ids"`
		AllowPublic bool    `json:"allows_public_repositories"`
	}
	if bad := c.decode(&in); bad != nil {
		return bad
	}
	if in.Name == "" {
		return unprocessable("Invalid request.\n\n\"name\" wasn't supplied.")
	}
	if slices.ContainsFunc(at.owner.groups, func(g *runnerGroup) bool { return strings.EqualFold(g.name, in.Name) }) {
		return fail(http.StatusConflict, "Runner group name is already taken.")
	}
	g := s.addGroup(at.owner, in.Name, in.AllowPublic)
	g.visibility = orString(in.Visibility, "all")
	for _, id := range in.RepoIDs {
		g.repos[id] = true
	}
	return &answer{status: http.StatusCreated, body: g.view(c.base, at.owner)}
}

// runnerVersion is the version of the runner that GitHub offers for download.
const runnerVersion = "2.336.0"

func (s *Sim) listDownloads(c *call) *answer {
	if _, bad := s.scope(c, "read"); bad != nil {
		return bad
	}
	list := []object{}
	for _, kind := range [][2]string{{"osx", "x64"}, {"osx", "arm64"}, {"linux", "x64"}, {"linux", "arm64"}} {
		file := fmt.Sprintf("actions-runner-%s-%s-%s.tar.gz", kind[0], kind[1], runnerVersion)
		list = append(list, object{
			"os": kind[0], "architecture": kind[1], "filename": file,
			"download_url": fmt.Sprintf("%s/actions/runner/releases/download/v%s/%s", c.base, runnerVersion, file),
		})
	}
	return &answer{status: http.StatusOK, list: list}
}

// expireUnused removes a registration that never connected.
func (s *Sim) expireUnused(r *runner) {
	s.later(s.timing.UnusedRegistration, func() {
		if r.onlineAt.IsZero() {
			s.remove(r, "never connected")
		}
	})
}

// listLag returns when a runner that is registered now starts to be listed.
func (s *Sim) listLag(now time.Time) time.Time { return now.Add(s.rng.upTo(s.timing.ListLag)) }
