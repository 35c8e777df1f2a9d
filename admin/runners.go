// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"slices"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// phases lists all phases as the API spells them.
func phases() []api.Phase {
	return []api.Phase{
		api.PhaseRequested, api.PhasePlaced, api.PhasePreparing, api.PhaseBooting, api.PhaseStandby,
		api.PhaseArmed, api.PhaseRegistering, api.PhaseIdle, api.PhaseBusy, api.PhaseFinished,
		api.PhaseFailed, api.PhaseDestroying, api.PhaseGone,
	}
}

// ListRunners answers GET /api/v1/runners.
func (h handlers) ListRunners(ctx context.Context, req api.ListRunnersRequestObject) (api.ListRunnersResponseObject, error) {
	var (
		host = given(req.Params.Host)
		only = given(req.Params.Phase)
		q    = fleet.RunnerQuery{Pool: given(req.Params.Pool), Host: fleet.HostID(host), All: given(req.Params.All)}
	)
	var err error
	if q.Page, err = pageOf(req.Params.Limit, req.Params.Cursor); err != nil {
		return nil, err
	}
	if q.Pool != "" && !fleet.ValidName(q.Pool) {
		return nil, badParameter("pool", "the name of a pool: 1 to 32 lower-case letters, digits and dashes")
	}
	if err := checkOneOf("phase", only, phases()...); err != nil {
		return nil, err
	}
	names, err := h.hostNames(ctx)
	if err != nil {
		return nil, err
	}
	for id, name := range names {
		if name != "" && name == host {
			q.Host = id
		}
	}
	runners, next, err := h.Store.ListRunners(ctx, q)
	if err != nil {
		return nil, err
	}
	page := api.ListRunners200JSONResponse{Items: make([]api.Runner, 0, len(runners)), Next: next}
	for _, r := range runners {
		row := wireRunner(r, names)
		// A phase is never stored: it follows from the row, so it is told apart here.
		if len(only) == 0 || slices.Contains(only, row.Phase) {
			page.Items = append(page.Items, row)
		}
	}
	return page, nil
}

// GetRunner answers GET /api/v1/runners/{id}.
func (h handlers) GetRunner(ctx context.Context, req api.GetRunnerRequestObject) (api.GetRunnerResponseObject, error) {
	row, err := h.runner(ctx, req.ID)
	return api.GetRunner200JSONResponse(row), err
}

// GetRunnerTimeline answers GET /api/v1/runners/{id}/timeline.
func (h handlers) GetRunnerTimeline(ctx context.Context, req api.GetRunnerTimelineRequestObject) (api.GetRunnerTimelineResponseObject, error) {
	row, err := h.runner(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	moments, err := h.Store.Timeline(ctx, fleet.RunnerID(req.ID))
	out := api.GetRunnerTimeline200JSONResponse{Runner: row, Moments: make([]api.Moment, 0, len(moments))}
	for _, m := range moments {
		out.Moments = append(out.Moments, api.Moment{At: wireTime(m.At), Phase: api.Phase(m.Phase), Detail: m.Detail})
	}
	return out, err
}

func (h handlers) runner(ctx context.Context, id string) (api.Runner, error) {
	r, found, err := h.Store.Runner(ctx, fleet.RunnerID(id))
	switch {
	case err != nil:
		return api.Runner{}, err
	case !found:
		return api.Runner{}, notFound("runner %.64q is not known: GET /api/v1/runners?all=true lists all", id)
	}
	names, err := h.hostNames(ctx)
	return wireRunner(r, names), err
}
