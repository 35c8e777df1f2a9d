// SPDX-License-Identifier: MIT

package scalesets

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/actions/scaleset"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Register makes a registration of a pool's scale set, with the set's labels and group. It
// asks GitHub once: only an error that is fleet.ErrUncertain leaves open whether there is a
// registration of that name now.
func (s *Sets) Register(ctx context.Context, pool, name string) (fleet.Registered, error) {
	one := s.sets[pool]
	if one == nil {
		return fleet.Registered{}, fmt.Errorf("%w: pool %s has no scale set", fleet.ErrRefused, pool)
	}
	id := one.id.Load()
	if id == 0 {
		return fleet.Registered{}, fmt.Errorf("the scale set of pool %s is not known yet: %w", pool, fleet.ErrLater)
	}
	var client *scaleset.Client
	select {
	case client = <-one.minters:
		defer func() { one.minters <- client }()
	case <-ctx.Done():
		return fleet.Registered{}, fmt.Errorf("register runner %s: %w: %w", name, context.Cause(ctx), fleet.ErrLater)
	}
	var made *scaleset.RunnerScaleSetJitRunnerConfig
	err := one.callWithin(ctx, mintWithin, "register runner "+name, func(ctx context.Context) (err error) {
		made, err = client.GenerateJitRunnerConfig(ctx, &scaleset.RunnerScaleSetJitRunnerSetting{Name: name, WorkFolder: "_work"}, int(id))
		return err
	})
	var limited *fleet.RateLimited
	var call *callError
	switch {
	case err == nil && (made == nil || made.Runner == nil || made.Runner.ID <= 0 || made.EncodedJITConfig == ""):
		return fleet.Registered{}, fmt.Errorf("register runner %s: %w: GitHub's answer lacks the runner's id or its config", name, fleet.ErrUncertain)
	case err == nil:
		return fleet.Registered{ID: int64(made.Runner.ID), Config: secret.New(made.EncodedJITConfig)}, nil
	case errors.Is(err, scaleset.RunnerExistsError):
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrNameTaken, err)
	case errors.As(err, &limited):
		return fleet.Registered{}, err
	case !errors.As(err, &call):
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrUncertain, err)
	case !call.sent: // there is no registration, and nobody refused one
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrLater, err)
	case call.status >= 300 && call.status < 500 && call.status != http.StatusRequestTimeout:
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrRefused, err)
	default:
		return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrUncertain, err)
	}
}
