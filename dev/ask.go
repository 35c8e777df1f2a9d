// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"fmt"

	"github.com/minifleet/minifleet/admin/api"
)

// hosts asks the controller for its hosts.
func (s *site) hosts(ctx context.Context) ([]api.Host, error) {
	res, err := s.api.ListHostsWithResponse(ctx, &api.ListHostsParams{})
	if err != nil {
		return nil, err
	}
	if res.JSON200 == nil {
		return nil, fmt.Errorf("hosts: the controller answered %s: %.200s", res.Status(), res.Body)
	}
	return res.JSON200.Items, nil
}

// runners asks the controller for its runners, those of the past too if all.
func (s *site) runners(ctx context.Context, all bool) ([]api.Runner, error) {
	limit := 1000
	res, err := s.api.ListRunnersWithResponse(ctx, &api.ListRunnersParams{All: &all, Limit: &limit})
	if err != nil {
		return nil, err
	}
	if res.JSON200 == nil {
		return nil, fmt.Errorf("runners: the controller answered %s: %.200s", res.Status(), res.Body)
	}
	return res.JSON200.Items, nil
}

// hostOf returns the name of the host on which the runner of that name at GitHub
// is, "" if none is.
func (s *site) hostOf(ctx context.Context, runnerName string) (string, error) {
	list, err := s.runners(ctx, true)
	for _, r := range list {
		if r.RunnerName == runnerName && runnerName != "" {
			return r.HostName, nil
		}
	}
	return "", err
}
