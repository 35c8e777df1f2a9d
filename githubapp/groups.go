// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/fleet"
)

const (
	// defaultGroup is the id of the group Default in every organization, and of
	// the only group that a repository has.
	defaultGroup = 1
	groupLife    = time.Hour
)

type groupEntry struct {
	id        int64
	checkedAt time.Time
}

func groupKey(scope fleet.Scope, name string) string {
	return strings.ToLower(scope.Owner) + "/" + name
}

// groupID resolves a runner group by its exact name.
func (a *App) groupID(ctx context.Context, scope fleet.Scope, name string) (int64, error) {
	if scope.Repo != "" || name == "" || strings.EqualFold(name, "default") {
		return defaultGroup, nil
	}
	key := groupKey(scope, name)
	if id, ok := a.cachedGroup(key); ok {
		return id, nil
	}
	unlock, err := a.grouping.lock(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("find runner group %q of %s: %w", name, scope, err)
	}
	defer unlock()
	if id, ok := a.cachedGroup(key); ok {
		return id, nil
	}
	id, err := a.lookUpGroup(ctx, scope, name)
	if err != nil {
		return 0, err
	}
	a.mu.Lock()
	a.groups[key] = groupEntry{id: id, checkedAt: a.now()}
	a.mu.Unlock()
	return id, nil
}

func (a *App) cachedGroup(key string) (int64, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	e, ok := a.groups[key]
	return e.id, ok && a.now().Sub(e.checkedAt) < groupLife
}

func (a *App) forgetGroup(scope fleet.Scope, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.groups, groupKey(scope, name))
}

func (a *App) lookUpGroup(ctx context.Context, scope fleet.Scope, name string) (int64, error) {
	what := fmt.Sprintf("find runner group %q of %s", name, scope)
	var id int64
	err := a.pagesAt(ctx, scope, what, func(ctx context.Context, c *github.Client, page github.ListOptions) (*github.Response, error) {
		list, resp, err := c.Actions.ListOrganizationRunnerGroups(ctx, scope.Owner, &github.ListOrgRunnerGroupOptions{ListOptions: page})
		if err != nil {
			return nil, err
		}
		for _, g := range list.RunnerGroups {
			if g.GetName() == name && g.GetID() > 0 {
				id = g.GetID()
				return nil, errLastPage
			}
		}
		return resp, nil
	})
	switch status, token := statusOf(err); {
	case !token && (status == http.StatusForbidden || status == http.StatusNotFound):
		return 0, fmt.Errorf("%w: the App needs the organization permission \"Self-hosted runners: write\": %w", ErrGroup, err)
	case err != nil:
		return 0, err
	case id == 0:
		return 0, fmt.Errorf("%s: %w: the organization has none of that name: correct the pool's runner_group or make the group", what, ErrGroup)
	}
	return id, nil
}
