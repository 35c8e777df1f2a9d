// SPDX-License-Identifier: MIT

package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

const (
	defaultTTL = time.Hour
	minTTL     = time.Minute
	maxTTL     = 7 * 24 * time.Hour
	maxUses    = 10000

	readyTimeout = 5 * time.Second
)

// CreateEnrolmentToken answers POST /api/v1/enrolment-tokens.
func (h handlers) CreateEnrolmentToken(ctx context.Context, req api.CreateEnrolmentTokenRequestObject) (api.CreateEnrolmentTokenResponseObject, error) {
	var (
		name string
		ttl  = defaultTTL
		uses = 1
	)
	if req.Body != nil {
		name = req.Body.HostName
		if req.Body.TTLSeconds != nil {
			// Checked as a number of seconds: as a duration it could wrap around.
			s := *req.Body.TTLSeconds
			if s < int(minTTL/time.Second) || s > int(maxTTL/time.Second) {
				return nil, refusal{http.StatusBadRequest, fmt.Sprintf("ttl_seconds: want a whole number from %d to %d", minTTL/time.Second, maxTTL/time.Second)}
			}
			ttl = time.Duration(s) * time.Second
		}
		if req.Body.Uses != nil {
			uses = *req.Body.Uses
		}
	}
	if name != "" && !fleet.ValidName(name) {
		return nil, refusal{http.StatusBadRequest, "host_name: want 1 to 32 lower-case letters, digits and dashes"}
	}
	if uses < 1 || uses > maxUses || uses > 1 && name != "" {
		return nil, refusal{http.StatusBadRequest, fmt.Sprintf("uses: want a whole number from 1 to %d, and 1 where host_name is given", maxUses)}
	}
	expires := h.Now().Add(ttl)
	token, err := h.Enroller.NewEnrolment(ctx, name, ttl, uses)
	if err != nil {
		return nil, fmt.Errorf("make enrolment token for host %q: %w", name, err)
	}
	h.Log.InfoContext(ctx, "enrolment token made by an operator", slog.String("name", name), slog.Duration("ttl", ttl), slog.Int("uses", uses))
	return api.CreateEnrolmentToken201JSONResponse{Token: token.Reveal(), HostName: name, ExpiresAt: wireTime(expires)}, nil
}

// GetVersion answers GET /api/v1/version.
func (h handlers) GetVersion(context.Context, api.GetVersionRequestObject) (api.GetVersionResponseObject, error) {
	return api.GetVersion200JSONResponse{Version: h.Version}, nil
}

// GetSpec answers GET /api/v1/openapi.yaml.
func (h handlers) GetSpec(context.Context, api.GetSpecRequestObject) (api.GetSpecResponseObject, error) {
	return api.GetSpec200ApplicationOpenapiYamlResponse{Body: bytes.NewReader(spec), ContentLength: int64(len(spec))}, nil
}

// GetHealth answers GET /healthz.
func (h handlers) GetHealth(context.Context, api.GetHealthRequestObject) (api.GetHealthResponseObject, error) {
	return api.GetHealth200JSONResponse{Status: api.HealthStatusOk}, nil
}

// GetReadiness answers GET /readyz. Probes come every few seconds, so only a
// change is logged.
func (h handlers) GetReadiness(ctx context.Context, _ api.GetReadinessRequestObject) (api.GetReadinessResponseObject, error) {
	within, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("the check of readiness took too long"))
	defer cancel()
	err := h.Ready(within)
	if ctx.Err() != nil {
		return nil, ctx.Err() // the prober has gone: this says nothing of the controller
	}
	if err != nil {
		if !h.server.unready.Swap(true) {
			h.Log.WarnContext(ctx, "not ready", slog.Any("error", errors.Join(err, context.Cause(within))))
		}
		return nil, refusal{http.StatusServiceUnavailable, "not ready: the controller's log has the cause"}
	}
	if h.server.unready.Swap(false) {
		h.Log.InfoContext(ctx, "ready again")
	}
	return api.GetReadiness200JSONResponse{Status: api.HealthStatusOk}, nil
}
