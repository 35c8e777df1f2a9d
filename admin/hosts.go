// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"errors"
	"log/slog"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// ListHosts answers GET /api/v1/hosts.
func (h handlers) ListHosts(ctx context.Context, req api.ListHostsRequestObject) (api.ListHostsResponseObject, error) {
	page, err := pageOf(req.Params.Limit, req.Params.Cursor)
	if err != nil {
		return nil, err
	}
	only := given(req.Params.State)
	if only != "" {
		if err := checkOneOf("state", []api.HostState{only}, api.HostStateOnline, api.HostStateUnreachable); err != nil {
			return nil, err
		}
	}
	hosts, next, err := h.Store.ListHosts(ctx, fleet.HostQuery{Page: page})
	if err != nil {
		return nil, err
	}
	taken, err := h.Store.SlotsTaken(ctx)
	if err != nil {
		return nil, err
	}
	out := api.ListHosts200JSONResponse{Items: make([]api.Host, 0, len(hosts)), Next: next}
	for _, host := range hosts {
		row := wireHost(host, taken[host.ID], h.stateOf(host))
		if only == "" || only == row.State {
			out.Items = append(out.Items, row)
		}
	}
	return out, nil
}

// RemoveHost answers DELETE /api/v1/hosts/{id}.
func (h handlers) RemoveHost(ctx context.Context, req api.RemoveHostRequestObject) (api.RemoveHostResponseObject, error) {
	names, err := h.hostNames(ctx)
	if err != nil {
		return nil, err
	}
	id := fleet.HostID(req.ID)
	name := names[id]
	switch err := h.Store.RemoveHost(ctx, id); {
	case errors.Is(err, fleet.ErrNotFound):
		return nil, notFound("no host has the id %.64q: GET /api/v1/hosts lists all", req.ID)
	case err != nil:
		return nil, err
	}
	crashpoint.Reached(crashpoint.HostRemoved)
	h.Log.InfoContext(ctx, "host removed by an operator", slog.String("host", req.ID), slog.String("name", name))
	return api.RemoveHost204Response{}, nil
}

func (h handlers) stateOf(host fleet.Host) api.HostState {
	if host.SeenAt.IsZero() || h.Now().Sub(host.SeenAt) > h.HostDeadline {
		return api.HostStateUnreachable
	}
	return api.HostStateOnline
}

// hostNames returns the name of every host.
func (h handlers) hostNames(ctx context.Context) (map[fleet.HostID]string, error) {
	names := map[fleet.HostID]string{}
	err := each(func(p fleet.Page) ([]fleet.Host, string, error) {
		return h.Store.ListHosts(ctx, fleet.HostQuery{Page: p})
	}, func(host fleet.Host) bool {
		names[host.ID] = host.Name
		return true
	})
	return names, err
}
