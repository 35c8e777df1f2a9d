// SPDX-License-Identifier: MIT

package admin

import (
	"context"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// ListDeliveries answers GET /api/v1/deliveries.
func (h handlers) ListDeliveries(ctx context.Context, req api.ListDeliveriesRequestObject) (api.ListDeliveriesResponseObject, error) {
	status := given(req.Params.Status)
	q := fleet.DeliveryQuery{Status: fleet.DeliveryStatus(status)}
	var err error
	if q.Page, err = pageOf(req.Params.Limit, req.Params.Cursor); err != nil {
		return nil, err
	}
	if status != "" {
		if err := checkOneOf("status", []api.DeliveryStatus{status},
			api.DeliveryStatusProcessed, api.DeliveryStatusIgnored, api.DeliveryStatusFailed); err != nil {
			return nil, err
		}
	}
	deliveries, next, err := h.Store.ListDeliveries(ctx, q)
	if err != nil {
		return nil, err
	}
	page := api.ListDeliveries200JSONResponse{Items: make([]api.Delivery, 0, len(deliveries)), Next: next}
	for _, d := range deliveries {
		page.Items = append(page.Items, wireDelivery(d))
	}
	return page, nil
}
