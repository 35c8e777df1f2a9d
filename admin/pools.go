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
	counts, err := h.Store.RunnerCounts(ctx)
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
		out.Items = append(out.Items, wirePool(p, counts[p.Name]))
	}
	return out, nil
}
