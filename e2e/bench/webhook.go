// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"time"
)

// requests makes the deliveries of n jobs, of the actions in their order.
func (s *site) requests(first int64, n int, actions ...string) ([][]byte, error) {
	var out [][]byte
	for i := range n {
		for _, action := range actions {
			r, err := s.request(news{job: first + int64(i), action: action, labels: poolLabels()})
			if err != nil {
				return nil, err
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// measureWebhook sends the three deliveries of each job, as GitHub does, at a constant
// rate; and then jobs as fast as they are taken.
func measureWebhook(ctx context.Context, b *bencher) error {
	s, err := newSite(ctx, b, siteOf{name: "webhook"})
	if err != nil {
		return err
	}
	defer s.close()
	requests, err := s.requests(1, b.of(1000), "queued", "in_progress", "completed")
	if err != nil {
		return err
	}
	profiled := s.profile(ctx, "webhook-steady", 10)
	cpu := s.controller.cpu()
	all, err := s.steady(ctx, requests, 200)
	if err != nil {
		return s.failed(err)
	}
	cpu = s.controller.cpu() - cpu
	t := answers(all)
	b.limit("webhook stored and answered, 200/s", "p99 < 20 ms", t.String(), t.at(0.99) < 20*time.Millisecond)
	b.note("  the controller's CPU for one delivery", fmt.Sprintf("%.2f ms", float64(cpu)/1e6/float64(len(all))))
	if err := profiled(); err != nil {
		return err
	}
	if requests, err = s.requests(100_000, b.of(1000), "queued"); err != nil {
		return err
	}
	profiled = s.profile(ctx, "webhook-burst", 2)
	if all, err = s.burst(requests, 64); err != nil {
		return s.failed(err)
	}
	first, last := span(all)
	rate := float64(len(all)) / last.Sub(first).Seconds()
	b.limit("burst of 1,000 deliveries over 64 connections", ">= 2,000/s", fmt.Sprintf("%.0f/s; %s", rate, answers(all)), rate >= 2000)
	return profiled()
}
