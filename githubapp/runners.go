// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"net/http"
	"strings"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

// Runner is a registration as GitHub shows it. Busy lags behind the truth by up
// to a minute, in both directions.
type Runner struct {
	ID     int64
	Name   string
	OS     string
	Online bool
	Busy   bool
	Labels []string
}

// ListRunners calls yield for each registration of a scope until yield returns
// false. GitHub's list lags, and while it changes an entry can be missing or come
// twice: that a runner is absent from one listing proves nothing.
func (a *App) ListRunners(ctx context.Context, scope fleet.Scope, yield func(Runner) bool) error {
	return a.runners(remembered(ctx), scope, fmt.Sprintf("list runners of %s", scope), nil, yield)
}

// FindRunner returns the registration of a name, in any case as GitHub compares
// names. Right after a registration GitHub's list may not have it yet.
func (a *App) FindRunner(ctx context.Context, scope fleet.Scope, name string) (Runner, bool, error) {
	var found Runner
	var ok bool
	ctx = prefer(ctx, PriorityAsk)
	// GitHub's filter is not said to be exact, so each result is compared.
	err := a.runners(ctx, scope, fmt.Sprintf("find runner %s of %s", name, scope), &name, func(r Runner) bool {
		if strings.EqualFold(r.Name, name) {
			found, ok = r, true
		}
		return !ok
	})
	if err != nil {
		return Runner{}, false, err
	}
	return found, ok, nil
}

func (a *App) runners(ctx context.Context, scope fleet.Scope, what string, name *string, yield func(Runner) bool) error {
	return a.pagesAt(ctx, scope, what, func(ctx context.Context, c *github.Client, page github.ListOptions) (*github.Response, error) {
		options := &github.ListRunnersOptions{Name: name, ListOptions: page}
		var list *github.Runners
		var resp *github.Response
		var err error
		if scope.Repo == "" {
			list, resp, err = c.Actions.ListOrganizationRunners(ctx, scope.Owner, options)
		} else {
			list, resp, err = c.Actions.ListRunners(ctx, scope.Owner, scope.Repo, options)
		}
		if err != nil {
			return nil, err
		}
		for _, r := range list.Runners {
			if r.GetID() > 0 && !yield(runner(r)) {
				return nil, errLastPage
			}
		}
		return resp, nil
	})
}

// GetRunner returns the registration of an id, and false if there is none.
func (a *App) GetRunner(ctx context.Context, scope fleet.Scope, id int64) (Runner, bool, error) {
	var found *github.Runner
	err := a.at(ctx, scope, fmt.Sprintf("get runner %d of %s", id, scope), a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		if scope.Repo == "" {
			found, _, err = in.client.Actions.GetOrganizationRunner(ctx, scope.Owner, id)
		} else {
			found, _, err = in.client.Actions.GetRunner(ctx, scope.Owner, scope.Repo, id)
		}
		return err
	})
	if missing(err) {
		return Runner{}, false, nil
	}
	if err != nil {
		return Runner{}, false, err
	}
	if found.GetID() != id {
		return Runner{}, false, fmt.Errorf("get runner %d of %s: GitHub's answer is about runner %d", id, scope, found.GetID())
	}
	return runner(found), true, nil
}

// DeleteRunner removes a registration. One that is gone already is no error; one
// that runs a job is ErrBusy.
func (a *App) DeleteRunner(ctx context.Context, scope fleet.Scope, id int64) error {
	what := fmt.Sprintf("delete runner %d of %s", id, scope)
	ctx = prefer(ctx, PriorityEnd)
	if id <= 0 {
		return fmt.Errorf("%s: not an id", what)
	}
	err := a.at(ctx, scope, what, a.callTimeout, func(ctx context.Context, in *installation) (err error) {
		if scope.Repo == "" {
			_, err = in.client.Actions.RemoveOrganizationRunner(ctx, scope.Owner, id)
		} else {
			_, err = in.client.Actions.RemoveRunner(ctx, scope.Owner, scope.Repo, id)
		}
		return err
	})
	if missing(err) {
		return nil
	}
	if status, _ := statusOf(err); status == http.StatusUnprocessableEntity {
		return fmt.Errorf("%s: %w", what, ErrBusy)
	}
	return err
}

// missing reports whether GitHub answered that what the call was about is gone.
func missing(err error) bool {
	status, token := statusOf(err)
	return status == http.StatusNotFound && !token
}

func runner(r *github.Runner) Runner {
	out := Runner{
		ID: r.GetID(), Name: printable(r.GetName(), 256), OS: printable(r.GetOS(), 64),
		Online: r.GetStatus() == "online", Busy: r.GetBusy(),
	}
	for _, l := range r.Labels {
		out.Labels = append(out.Labels, printable(l.GetName(), 256))
	}
	return out
}
