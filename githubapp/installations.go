// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// An installation keeps its id until it is removed; the webhook usually tells.
	installationLife = time.Hour
	// That the App is not installed somewhere is soon wrong: someone is about to
	// install it.
	absenceLife = 30 * time.Second
	// A 404 can mean that a repository has left the installation. That is looked
	// into at most this often: a runner that is gone is a 404 too.
	verifyAfter = time.Minute
)

// installation is a place of the App with its own sign-in. Each has its own
// AppsTransport, because the installation's transport writes to it.
type installation struct {
	id     int64
	client *github.Client
	sign   *ghinstallation.Transport
}

type scopeEntry struct {
	id        int64
	absent    error // why there is none, nil if there is
	checkedAt time.Time
}

// Installations lists all places where the App is installed.
func (a *App) Installations(ctx context.Context) ([]fleet.Installation, error) {
	var out []fleet.Installation
	err := a.pages(ctx, "list installations", func(ctx context.Context, page github.ListOptions) (*github.Response, error) {
		list, resp, err := a.self.Apps.ListInstallations(ctx, &page)
		for _, in := range list {
			if in.GetID() <= 0 {
				continue
			}
			account := in.GetAccount().GetLogin()
			out = append(out, fleet.Installation{ID: in.GetID(), Account: printable(account, 256), Suspended: in.SuspendedAt != nil})
		}
		return resp, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Repositories lists the repositories that the installation of a scope covers, without
// those that are archived or disabled: nothing runs there.
func (a *App) Repositories(ctx context.Context, scope fleet.Scope) ([]fleet.Scope, error) {
	var out []fleet.Scope
	err := a.pagesAt(remembered(ctx), scope, "list the repositories of "+scope.String(), func(ctx context.Context, c *github.Client, page github.ListOptions) (*github.Response, error) {
		list, resp, err := c.Apps.ListRepos(ctx, &page)
		if err != nil {
			return nil, err
		}
		for _, r := range list.Repositories {
			repo, err := fleet.ParseScope(r.GetFullName())
			if err == nil && repo.Repo != "" && !r.GetArchived() && !r.GetDisabled() {
				out = append(out, repo)
			}
		}
		return resp, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// InstallationID returns the id of the installation that a scope belongs to.
func (a *App) InstallationID(ctx context.Context, scope fleet.Scope) (int64, error) {
	in, err := a.installationOf(ctx, scope)
	if err != nil {
		return 0, err
	}
	return in.id, nil
}

// ForgetInstallation drops all that is cached of an installation, for when GitHub
// has told that it was made, removed or changed.
func (a *App) ForgetInstallation(id int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forget(id)
}

// forget drops all that is cached of an installation. The caller holds mu.
func (a *App) forget(id int64) {
	delete(a.clients, id)
	for key, e := range a.scopes {
		if e.id == id || e.absent != nil {
			delete(a.scopes, key)
		}
	}
}

// installationOf returns the installation of a scope, from the cache if it can.
func (a *App) installationOf(ctx context.Context, scope fleet.Scope) (*installation, error) {
	if in, absent := a.cached(scope); in != nil || absent != nil {
		return in, absent
	}
	unlock, err := a.lookups.lock(ctx, scope.Key())
	if err != nil {
		return nil, fmt.Errorf("find the installation of %s: %w", scope, err)
	}
	defer unlock()
	if in, absent := a.cached(scope); in != nil || absent != nil { // another has looked meanwhile
		return in, absent
	}
	id, err := a.lookUp(fleet.WithMeter(ctx, nil), scope) // the App's own affair
	if err != nil && !errors.Is(err, ErrNotInstalled) {
		return nil, err
	}
	a.mu.Lock()
	a.scopes[scope.Key()] = scopeEntry{id: id, absent: err, checkedAt: a.now()}
	a.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return a.installation(id)
}

// cached returns what is known of a scope: an installation, why there is none, or
// neither.
func (a *App) cached(scope fleet.Scope) (*installation, error) {
	a.mu.Lock()
	e, ok := a.scopes[scope.Key()]
	gone := a.absent(scope)
	a.mu.Unlock()
	if gone != nil {
		return nil, gone // GitHub has told so: no call is made
	}
	age := a.now().Sub(e.checkedAt)
	switch {
	case !ok, e.absent == nil && age >= installationLife, e.absent != nil && age >= absenceLife:
		return nil, nil
	case e.absent != nil:
		return nil, e.absent
	}
	in, err := a.installation(e.id)
	return in, err
}

// installation returns the sign-in for an id.
func (a *App) installation(id int64) (*installation, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if in := a.clients[id]; in != nil {
		return in, nil
	}
	apps, err := a.appTransport(id)
	if err != nil {
		return nil, err
	}
	tr := ghinstallation.NewFromAppsTransport(apps, id)
	tr.BaseURL = a.base
	client, err := a.client(newSignIn(tr), id)
	if err != nil {
		return nil, err
	}
	in := &installation{id: id, client: client, sign: tr}
	a.clients[id] = in
	return in, nil
}

// lookUp asks GitHub for the installation of exactly this organization or
// repository.
func (a *App) lookUp(ctx context.Context, scope fleet.Scope) (int64, error) {
	what := fmt.Sprintf("find the installation of %s", scope)
	var found *github.Installation
	err := a.request(ctx, what, a.callTimeout, func(ctx context.Context) (err error) {
		if scope.Repo == "" {
			found, _, err = a.self.Apps.FindOrganizationInstallation(ctx, scope.Owner)
		} else {
			found, _, err = a.self.Apps.FindRepositoryInstallation(ctx, scope.Owner, scope.Repo)
		}
		return err
	})
	switch status, _ := statusOf(err); {
	case status == http.StatusNotFound:
		return 0, a.whyAbsent(ctx, scope)
	case err != nil:
		return 0, err
	case found.GetID() <= 0:
		return 0, fmt.Errorf("%s: GitHub's answer has no installation id", what)
	case found.SuspendedAt != nil:
		return 0, fmt.Errorf("%s: %w: it is suspended: an owner of %s can resume it in the settings of installed GitHub Apps", what, ErrNotInstalled, scope.Owner)
	}
	a.log.DebugContext(ctx, "installation found", slog.String("scope", scope.String()), slog.Int64("installation", found.GetID()))
	return found.GetID(), nil
}

// whyAbsent tells a missing installation from an account that cannot have
// runners for all of its repositories.
func (a *App) whyAbsent(ctx context.Context, scope fleet.Scope) error {
	missing := fmt.Errorf("%w: install it in %s and give it access to the repository", ErrNotInstalled, scope.Owner)
	if scope.Repo != "" {
		return fmt.Errorf("find the installation of %s: %w", scope, missing)
	}
	err := a.request(ctx, "find the installation of user "+scope.Owner, a.callTimeout, func(ctx context.Context) error {
		_, _, err := a.self.Apps.FindUserInstallation(ctx, scope.Owner)
		return err
	})
	if err == nil {
		return fmt.Errorf("find the installation of %s: %w as an organization: %s is a user, for whom GitHub has runners of single repositories only: use scopes of the form %s/REPOSITORY",
			scope, ErrNotInstalled, scope.Owner, scope.Owner)
	}
	if status, _ := statusOf(err); status != http.StatusNotFound {
		return err
	}
	return fmt.Errorf("find the installation of %s: %w: install it in the organization", scope, ErrNotInstalled)
}

// stale decides after a failed call whether what is cached of the scope may be
// the reason, and if so drops it. Then the call is worth one repetition: each
// answer it looks at says that nothing was done.
func (a *App) stale(scope fleet.Scope, in *installation, err error) bool {
	status, token := statusOf(err)
	switch {
	case status == http.StatusUnauthorized && !token, // the token was revoked
		status == http.StatusNotFound && token: // the installation is gone
		a.forgetPlace(in)
		return true
	case status == http.StatusNotFound:
		a.mu.Lock()
		defer a.mu.Unlock()
		e, ok := a.scopes[scope.Key()]
		if !ok || e.id != in.id || a.now().Sub(e.checkedAt) < verifyAfter {
			return false
		}
		delete(a.scopes, scope.Key())
		return true
	default:
		return false
	}
}

// forgetPlace drops an installation unless another has been put in its place.
func (a *App) forgetPlace(in *installation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.clients[in.id] != in {
		return
	}
	delete(a.clients, in.id)
	for key, e := range a.scopes {
		if e.absent == nil && e.id == in.id {
			delete(a.scopes, key)
		}
	}
}
