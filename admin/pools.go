// SPDX-License-Identifier: MIT

package admin

import (
	"context"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// ListPools answers GET /api/v1/pools. The cursor is the name of the last pool
// of the page before: pools come from the configuration, sorted by name.
func (h handlers) ListPools(ctx context.Context, req api.ListPoolsRequestObject) (api.ListPoolsResponseObject, error) {
	page, err := pageOf(req.Params.Limit, req.Params.Cursor)
	if err != nil {
		return nil, err
	}
	if page.Cursor != "" && !fleet.ValidName(page.Cursor) {
		return nil, badParameter("cursor", "the `next` of an earlier answer to the same request")
	}
	var repository fleet.Scope
	if name := given(req.Params.Repository); name != "" {
		if repository, err = repositoryOf(name); err != nil {
			return nil, err
		}
	}
	show, err := h.poolShower(ctx)
	if err != nil {
		return nil, err
	}
	out := api.ListPools200JSONResponse{Items: []api.Pool{}}
	for _, p := range h.Pools {
		if p.Name <= page.Cursor {
			continue
		}
		if _, covered := p.ScopeFor(repository.Owner, repository.Repo); !repository.IsZero() && !covered {
			continue
		}
		if len(out.Items) == page.Limit {
			out.Next = out.Items[page.Limit-1].Name
			break
		}
		out.Items = append(out.Items, show(p))
	}
	return out, nil
}

// GetPool answers GET /api/v1/pools/{name}.
func (h handlers) GetPool(ctx context.Context, req api.GetPoolRequestObject) (api.GetPoolResponseObject, error) {
	p, err := h.shownPool(ctx, req.Name)
	return api.GetPool200JSONResponse(p), err
}

// shownPool returns one pool as the API shows it.
func (h handlers) shownPool(ctx context.Context, name string) (api.Pool, error) {
	show, err := h.poolShower(ctx)
	if err != nil {
		return api.Pool{}, err
	}
	for _, p := range h.Pools {
		if p.Name == name {
			return show(p), nil
		}
	}
	return api.Pool{}, noPool(name)
}

func noPool(name string) error {
	return notFound("no pool has the name %.64q: GET /api/v1/pools lists all", name)
}

// poolShower reads what pools are shown with.
func (h handlers) poolShower(ctx context.Context) (func(fleet.Pool) api.Pool, error) {
	counts, err := h.Store.RunnerCounts(ctx)
	if err != nil {
		return nil, err
	}
	rollouts, err := h.Store.Rollouts(ctx)
	if err != nil {
		return nil, err
	}
	var hosts []fleet.Host // only rollouts are told of hosts
	if len(rollouts) > 0 {
		err = each(func(p fleet.Page) ([]fleet.Host, string, error) {
			return h.Store.ListHosts(ctx, fleet.HostQuery{Page: p})
		}, func(host fleet.Host) bool {
			if h.stateOf(host) == api.HostStateOnline {
				hosts = append(hosts, host)
			}
			return true
		})
	}
	if err != nil {
		return nil, err
	}
	health, err := h.runnerHealth(ctx)
	return func(p fleet.Pool) api.Pool {
		out := wirePool(p, counts[p.Name])
		out.Runner = health[p.Name]
		if r, ok := rollouts[p.Name]; ok {
			out.Rollout = wireRollout(p, r, hosts)
		}
		return out
	}, err
}
