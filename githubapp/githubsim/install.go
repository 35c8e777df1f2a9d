// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Installation describes an installation of the App to be added.
type Installation struct {
	Account      string            `json:"account"`                // login
	User         bool              `json:"user,omitempty"`         // a user's account, not an organization
	Repositories []string          `json:"repositories,omitempty"` // names; created if new
	Public       []string          `json:"public,omitempty"`       // those of Repositories that are public
	Selected     bool              `json:"selected,omitempty"`     // only Repositories, not all of the account
	Permissions  map[string]string `json:"permissions,omitempty"`  // default: what the App needs
}

func defaultPermissions() map[string]string {
	return map[string]string{
		"actions": "write", "administration": "write", "metadata": "read", "organization_self_hosted_runners": "write",
	}
}

// AddInstallation installs the App on an account and returns the installation's
// id. The App is told by webhook, as on GitHub.
func (s *Sim) AddInstallation(spec Installation) (int64, error) {
	if spec.Account == "" || strings.Contains(spec.Account, "/") {
		return 0, fmt.Errorf("add installation: account %q: give the login of a user or an organization", spec.Account)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	acc := s.account(spec.Account, !spec.User)
	if acc.org == spec.User {
		return 0, fmt.Errorf("add installation: account %s exists already, of the other kind", spec.Account)
	}
	if s.installationOf(acc) != nil {
		return 0, fmt.Errorf("add installation: the app is installed on %s already; use AddRepositories", spec.Account)
	}
	now := time.Now()
	in := &installation{
		id: 50_000_000 + s.newID(), account: acc, all: !spec.Selected, repos: map[int64]bool{},
		permissions: maps.Clone(spec.Permissions), createdAt: now, updatedAt: now,
	}
	if in.permissions == nil {
		in.permissions = defaultPermissions()
	}
	for _, name := range spec.Repositories {
		in.repos[s.repository(acc, name, !slices.Contains(spec.Public, name)).id] = true
	}
	s.installs = append(s.installs, in)
	s.emitInstallation("created", in)
	s.change()
	return in.id, nil
}

// AddRepositories gives an installation more repositories, created if new.
func (s *Sim) AddRepositories(installationID int64, names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.installation(installationID)
	if in == nil {
		return fmt.Errorf("add repositories: no installation %d", installationID)
	}
	var added []*repository
	for _, name := range names {
		repo := s.repository(in.account, name, true)
		if !in.repos[repo.id] {
			in.repos[repo.id] = true
			added = append(added, repo)
		}
	}
	s.emitRepositories("added", in, added)
	s.change()
	return nil
}

// RemoveRepositories takes repositories from an installation. It becomes one of
// selected repositories.
func (s *Sim) RemoveRepositories(installationID int64, names ...string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.installation(installationID)
	if in == nil {
		return fmt.Errorf("remove repositories: no installation %d", installationID)
	}
	if in.all {
		for _, repo := range s.repos {
			if repo.owner == in.account {
				in.repos[repo.id] = true
			}
		}
		in.all = false
	}
	var removed []*repository
	for _, name := range names {
		if repo := s.repos[strings.ToLower(in.account.login+"/"+name)]; repo != nil && in.repos[repo.id] {
			delete(in.repos, repo.id)
			removed = append(removed, repo)
		}
	}
	s.emitRepositories("removed", in, removed)
	s.change()
	return nil
}

// Suspend suspends an installation, or ends its suspension: its tokens are
// refused with 403 and no event of its repositories is delivered meanwhile.
func (s *Sim) Suspend(installationID int64, suspended bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.installation(installationID)
	switch {
	case in == nil:
		return fmt.Errorf("suspend: no installation %d", installationID)
	case suspended == !in.suspendedAt.IsZero():
		return nil
	case suspended:
		in.suspendedAt = time.Now()
		s.emitInstallation("suspend", in)
	default:
		in.suspendedAt = time.Time{}
		s.emitInstallation("unsuspend", in)
	}
	s.change()
	return nil
}

// Uninstall removes an installation: its tokens end at once.
func (s *Sim) Uninstall(installationID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.installation(installationID)
	if in == nil {
		return fmt.Errorf("uninstall: no installation %d", installationID)
	}
	s.uninstall(in)
	return nil
}

func (s *Sim) uninstall(in *installation) {
	s.emitInstallation("deleted", in)
	s.installs = slices.DeleteFunc(s.installs, func(x *installation) bool { return x == in })
	maps.DeleteFunc(s.tokens, func(_ string, t *accessToken) bool { return t.install == in })
	s.change()
}

// AddRunnerGroup gives an organization a runner group that only the named
// repositories may use (none named: all), and returns its id.
func (s *Sim) AddRunnerGroup(org, name string, allowPublic bool, repos ...string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	acc := s.accounts[strings.ToLower(org)]
	if acc == nil || !acc.org {
		return 0, fmt.Errorf("add runner group: no organization %q; add an installation first", org)
	}
	g := s.addGroup(acc, name, allowPublic)
	if len(repos) > 0 {
		g.visibility = "selected"
		for _, repo := range repos {
			g.repos[s.repository(acc, repo, true).id] = true
		}
	}
	return g.id, nil
}

func (s *Sim) addGroup(acc *account, name string, allowPublic bool) *runnerGroup {
	g := &runnerGroup{id: 2 + int64(len(acc.groups)), name: name, visibility: "all", allowPublic: allowPublic, repos: map[int64]bool{}}
	acc.groups = append(acc.groups, g)
	return g
}

// account finds an account or makes it. The caller holds mu.
func (s *Sim) account(login string, org bool) *account {
	key := strings.ToLower(login)
	acc := s.accounts[key]
	if acc == nil {
		acc = &account{id: 1_000_000 + s.newID(), login: login, org: org}
		if org {
			acc.groups = []*runnerGroup{{id: 1, name: "Default", visibility: "all", isDefault: true}} // as on GitHub, no public repositories
		}
		s.accounts[key] = acc
	}
	return acc
}

// repository finds a repository or makes it. The caller holds mu.
func (s *Sim) repository(owner *account, name string, private bool) *repository {
	key := strings.ToLower(owner.login + "/" + name)
	repo := s.repos[key]
	if repo == nil {
		repo = &repository{id: 700_000_000 + s.newID(), owner: owner, name: name, private: private, createdAt: time.Now(), clock: s.clock}
		s.repos[key] = repo
	}
	return repo
}

func (s *Sim) installation(id int64) *installation {
	i := slices.IndexFunc(s.installs, func(in *installation) bool { return in.id == id })
	if i < 0 {
		return nil
	}
	return s.installs[i]
}

func (s *Sim) installationOf(acc *account) *installation {
	i := slices.IndexFunc(s.installs, func(in *installation) bool { return in.account == acc })
	if i < 0 {
		return nil
	}
	return s.installs[i]
}

// installationFor is the installation that covers a repository.
func (s *Sim) installationFor(repo *repository) *installation {
	i := slices.IndexFunc(s.installs, func(in *installation) bool { return in.covers(repo) })
	if i < 0 {
		return nil
	}
	return s.installs[i]
}

// reposOf lists what an installation covers, by id.
func (s *Sim) reposOf(in *installation) []*repository {
	var out []*repository
	for _, repo := range s.repos {
		if in.covers(repo) {
			out = append(out, repo)
		}
	}
	slices.SortFunc(out, func(a, b *repository) int { return int(a.id - b.id) })
	return out
}
