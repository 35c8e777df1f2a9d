// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/scalesets"
	"github.com/minifleet/minifleet/secret"
)

// demandSource tells the books of jobs. Whatever it is, what it tells becomes news of jobs
// in a fleet.Ingest, by which webhooks come too; decisions see nothing but the books, and
// whether every source is up to date.
type demandSource interface {
	Run(context.Context) error
	// Fresh reports whether all that the source knows of was told since the start.
	Fresh() bool
}

// fresh reports whether every source of demand is.
func fresh(sources ...demandSource) bool {
	for _, s := range sources {
		if !s.Fresh() {
			return false
		}
	}
	return true
}

// scaleSets returns the source of demand of those pools that have a scale set.
func (c *controller) scaleSets(pools []fleet.Pool, log *slog.Logger) (*scalesets.Sets, error) {
	web, err := githubapp.WebURL(c.cfg.GitHub.URL)
	if err != nil {
		return nil, err
	}
	return scalesets.New(scalesets.Config{
		Store: c.store, GitHub: gitHubPort{c.app}, Pools: pools, WebURL: web,
		Owner: "minifleet-" + c.store.Site(), Version: program.Version(),
		Every: c.cfg.Timing.Reconcile, Absence: c.cfg.Timing.Absence, HostDeadline: c.cfg.Timing.HostDeadline,
		Wake: c.loop.Wake, PassedOver: c.metrics.PassedOver, Observe: func(call scalesets.Call) {
			c.metrics.SetCalled(call.Pool, call.Kind, answered(call.Status), call.Took)
		},
		Log: log,
	})
}

// claimed returns the pool whose scale set is given a job that webhooks or lists show, and
// false if the job is theirs to tell.
func claimed(pools []fleet.Pool) func(fleet.Job) (string, bool) {
	return func(j fleet.Job) (string, bool) {
		for _, p := range pools {
			if p.Claims(j) {
				return p.Name, true
			}
		}
		return "", false
	}
}

// RegistrationToken returns a token by which runners are registered in a scope.
func (p gitHubPort) RegistrationToken(ctx context.Context, scope fleet.Scope) (secret.Text, error) {
	token, err := p.app.RegistrationToken(ctx, scope)
	return token, inDomain(err)
}

// RunJobs returns the jobs of a run in its latest attempt.
func (p gitHubPort) RunJobs(ctx context.Context, repo fleet.Scope, run int64) ([]fleet.JobNews, error) {
	list, err := p.app.RunJobs(ctx, repo, run)
	return list, inDomain(err)
}

// mintPort makes each registration where its pool's demand comes from.
type mintPort struct {
	sparing
	sets *scalesets.Sets
}

// Register makes a registration.
func (p mintPort) Register(ctx context.Context, pool fleet.Pool, scope fleet.Scope, name string) (fleet.Registered, error) {
	if pool.ScaleSet == "" {
		return p.gitHubPort.Register(ctx, pool, scope, name)
	}
	r, err := p.sets.Register(ctx, pool.Name, name)
	if err != nil {
		return fleet.Registered{}, err
	}
	why := githubapp.CheckConfig(r.Config.Reveal(), name)
	if why == nil {
		return r, nil
	}
	// It must not be used. Nobody else knows its id.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	if err := p.Unregister(ctx, fleet.RegistrationRef{Scope: scope, Name: name, ID: r.ID}); err != nil {
		return fleet.Registered{}, fmt.Errorf("register runner %s: %w, and could not be taken back: %w: %w", name, why, fleet.ErrUncertain, err)
	}
	return fleet.Registered{}, fmt.Errorf("register runner %s: %w; the registration is deleted: %w", name, why, fleet.ErrLater)
}
