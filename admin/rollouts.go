// SPDX-License-Identifier: MIT

package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// RollOut answers POST /api/v1/pools/{name}/rollout.
func (h handlers) RollOut(ctx context.Context, req api.RollOutRequestObject) (api.RollOutResponseObject, error) {
	var in api.RolloutRequest
	if req.Body != nil {
		in = *req.Body
	}
	if in.Digest != "" && !fleet.ValidDigest(in.Digest) {
		return nil, badDigest("digest")
	}
	p, err := h.roll(ctx, req.Name, "roll out", func() error {
		_, err := h.Roller.Take(ctx, req.Name, in.Digest, in.Now)
		return err
	})
	return api.RollOut200JSONResponse(p), err
}

// Promote answers POST /api/v1/pools/{name}/promote.
func (h handlers) Promote(ctx context.Context, req api.PromoteRequestObject) (api.PromoteResponseObject, error) {
	p, err := h.roll(ctx, req.Name, "promote", func() error {
		_, err := h.Roller.Promote(ctx, req.Name)
		return err
	})
	return api.Promote200JSONResponse(p), err
}

// RollBack answers POST /api/v1/pools/{name}/rollback.
func (h handlers) RollBack(ctx context.Context, req api.RollBackRequestObject) (api.RollBackResponseObject, error) {
	leave := ""
	if req.Body != nil {
		leave = req.Body.Leave
	}
	if leave != "" && !fleet.ValidDigest(leave) {
		return nil, badDigest("leave")
	}
	p, err := h.roll(ctx, req.Name, "roll back", func() error {
		_, err := h.Roller.Back(ctx, req.Name, leave)
		return err
	})
	return api.RollBack200JSONResponse(p), err
}

func badDigest(field string) error {
	return refusal{http.StatusBadRequest, field + ": want sha256: and 64 hex digits, as GET /api/v1/pools shows digests"}
}

// roll does something to a pool's rollout and shows what came of it.
func (h handlers) roll(ctx context.Context, pool, what string, act func() error) (api.Pool, error) {
	if err := act(); err != nil {
		switch {
		case errors.Is(err, fleet.ErrNotFound):
			return api.Pool{}, noPool(pool)
		case errors.Is(err, fleet.ErrLocalImage), errors.Is(err, fleet.ErrNoRollout), errors.Is(err, fleet.ErrNoPrevious), errors.Is(err, fleet.ErrConflict):
			return api.Pool{}, refusal{http.StatusConflict, err.Error()}
		case errors.Is(err, fleet.ErrNoImage):
			return api.Pool{}, refusal{http.StatusBadGateway, err.Error()}
		default:
			return api.Pool{}, fmt.Errorf("%s on pool %s: %w", what, pool, err)
		}
	}
	h.Log.InfoContext(ctx, "rollout changed by an operator", slog.String("pool", pool), slog.String("what", what))
	return h.shownPool(ctx, pool)
}
