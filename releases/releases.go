// SPDX-License-Identifier: MIT

// Package releases follows the releases of GitHub's runner, and says of which pools the
// image holds one that is too old, or soon will be: GitHub refuses those. It changes
// nothing about pools or runners.
package releases

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Store keeps what is known of releases, and what guests say of their runners.
type Store interface {
	// LearnReleases takes note of versions; one without a time counts from when it was
	// first seen.
	LearnReleases(context.Context, []fleet.RunnerRelease) error
	Releases(context.Context) ([]fleet.RunnerRelease, error)
	PoolRunners(context.Context) (map[string]fleet.PoolRunner, error)
}

// GitHub tells of versions.
type GitHub interface {
	// OfferedRunners returns the versions that a scope is offered, without dates.
	OfferedRunners(context.Context, fleet.Scope) ([]string, error)
	// RunnerReleases returns the newest releases with their dates, none where the server
	// does not have them.
	RunnerReleases(context.Context, fleet.Scope) ([]fleet.RunnerRelease, error)
}

// Config wires a Watch.
type Config struct {
	Store  Store  // required
	GitHub GitHub // required
	Pools  []fleet.Pool
	// Refresh is how often GitHub is asked. 0 means six hours.
	Refresh time.Duration
	// Look is how often the pools are compared with what is known. 0 means one minute.
	Look time.Duration
	Now  func() time.Time // nil means time.Now
	Log  *slog.Logger     // nil discards
}

// Watch looks after the age of the pools' runners.
type Watch struct {
	c    Config
	said map[string]fleet.RunnerHealth // what was logged last, by pool; Run's alone
}

// New returns a watch that Run starts.
func New(c Config) *Watch {
	if c.Refresh == 0 {
		c.Refresh = 6 * time.Hour
	}
	if c.Look == 0 {
		c.Look = time.Minute
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Watch{c: c, said: map[string]fleet.RunnerHealth{}}
}

// Health compares each pool's runner with the releases, by pool. Pools of which no guest
// has spoken yet are unknown.
func (w *Watch) Health(ctx context.Context) (map[string]fleet.RunnerHealth, error) {
	list, err := w.c.Store.Releases(ctx)
	if err != nil {
		return nil, err
	}
	runners, err := w.c.Store.PoolRunners(ctx)
	if err != nil {
		return nil, err
	}
	out := make(map[string]fleet.RunnerHealth, len(w.c.Pools))
	for _, p := range w.c.Pools {
		out[p.Name] = fleet.HealthOf(runners[p.Name], list, w.c.Now())
	}
	return out, nil
}

// Run asks GitHub and compares, until ctx ends.
func (w *Watch) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var ask time.Time // next
	for complained := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if now := w.c.Now(); !now.Before(ask) {
			ask = now.Add(w.c.Refresh)
			if err := w.learn(ctx); err != nil && ctx.Err() == nil {
				ask = now.Add(min(w.c.Refresh, 10*time.Minute))
				if !complained {
					w.c.Log.Warn("the runner's releases are not known: its age is judged by what was known before", "error", err)
				}
				complained = true
			} else if err == nil {
				complained = false
			}
		}
		if health, err := w.Health(ctx); err == nil {
			w.say(health)
		} else if ctx.Err() == nil {
			w.c.Log.Warn("the age of the pools' runners is not known", "error", err)
		}
		timer.Reset(w.c.Look)
	}
}

// learn asks GitHub once, as the first scope that answers: all are offered the same.
func (w *Watch) learn(ctx context.Context) error {
	var errs []error
	for _, scope := range w.scopes() {
		offered, err := w.c.GitHub.OfferedRunners(ctx, scope)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		// Without dates, as from a server that lacks them, a version counts from its first sight.
		list, undated := w.c.GitHub.RunnerReleases(ctx, scope)
		if undated != nil {
			w.c.Log.Debug("dates of the runner's releases not read", "error", undated)
		}
		dated := map[string]bool{}
		for _, r := range list {
			dated[r.Version] = true
		}
		for _, version := range offered {
			if !dated[version] {
				list = append(list, fleet.RunnerRelease{Version: version})
			}
		}
		return w.c.Store.LearnReleases(ctx, list)
	}
	return errors.Join(errs...)
}

func (w *Watch) scopes() (out []fleet.Scope) {
	seen := map[string]bool{}
	for _, p := range w.c.Pools {
		for _, s := range p.Scopes {
			if !seen[s.Key()] {
				seen[s.Key()] = true
				out = append(out, s)
			}
		}
	}
	return out
}

// say logs both edges of each alarm.
func (w *Watch) say(health map[string]fleet.RunnerHealth) {
	for pool, h := range health {
		was, known := w.said[pool]
		w.said[pool] = h
		if known && was.Age == h.Age && was.Refused == h.Refused {
			continue
		}
		log := w.c.Log.With("pool", pool, "version", h.Version, "newest", h.Newest, "behind", h.Behind(w.c.Now()).Round(time.Hour))
		switch h.Age {
		case fleet.RunnerTooOld:
			log.Error("the runner in a pool's image is too old", "refused", h.Refused)
		case fleet.RunnerOld:
			log.Warn("the runner in a pool's image grows old")
		default:
			if was.Age == fleet.RunnerOld || was.Age == fleet.RunnerTooOld {
				log.Info("the runner in a pool's image is recent again")
			}
		}
	}
}

// Sentence says what is wrong with a pool's runner and what to do, "" if nothing is.
func (w *Watch) Sentence(pool string, h fleet.RunnerHealth) string {
	now := w.c.Now()
	const do = "put a current runner into the image and roll it out"
	switch {
	case h.Refused:
		return fmt.Sprintf("GitHub refuses the runner of pool %s (%s) as too old: %s", pool, orUnnamed(h.Version), do)
	case h.Age == fleet.RunnerTooOld:
		return fmt.Sprintf("the runner of pool %s (%s) is older than GitHub allows: %s came out %s ago: %s", pool, h.Version, newer(h), days(h.Behind(now)), do)
	case h.Age == fleet.RunnerOld:
		return fmt.Sprintf("the runner of pool %s (%s) grows old: %s came out %s ago, and GitHub refuses it after 30 days: %s", pool, h.Version, newer(h), days(h.Behind(now)), do)
	}
	return ""
}

func newer(h fleet.RunnerHealth) string { return "a newer one (now " + h.Newest + ")" }

func days(d time.Duration) string { return fmt.Sprintf("%d days", int(d.Hours()/24)) }

func orUnnamed(version string) string {
	if version == "" {
		return "which did not name its version"
	}
	return version
}
