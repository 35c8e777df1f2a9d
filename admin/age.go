// SPDX-License-Identifier: MIT

package admin

import (
	"context"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// runnerHealth shows how old the pools' runners are, by pool.
func (h handlers) runnerHealth(ctx context.Context) (map[string]api.RunnerHealth, error) {
	out := map[string]api.RunnerHealth{}
	if h.Runners == nil {
		return out, nil
	}
	all, err := h.Runners.Health(ctx)
	for pool, is := range all {
		out[pool] = api.RunnerHealth{
			Age: api.RunnerHealthAge(is.Age), Version: is.Version, Newest: is.Newest, BehindSince: wireTime(is.BehindSince),
			Refused: is.Refused, Alarm: h.Runners.Sentence(pool, is),
		}
	}
	return out, err
}

// addAlarms names what is wrong with the pools that could serve a job that waits.
func (h handlers) addAlarms(ctx context.Context, job fleet.Job, out *api.Explanation) error {
	health, err := h.runnerHealth(ctx)
	if err != nil {
		return err
	}
	for _, p := range h.Pools {
		if p.Serves(job) && health[p.Name].Alarm != "" {
			out.Alarms = append(out.Alarms, health[p.Name].Alarm)
		}
	}
	return nil
}
