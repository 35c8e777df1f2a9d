// SPDX-License-Identifier: MIT

// Package scalesets is demand from runner scale sets, for the pools that have one: it
// keeps each set as its pool is configured, reads its message queue, has the content
// stored and only then acknowledges it, and compares the books with GitHub's count of the
// set's jobs. It also makes the registrations of these pools. What runners there are it
// leaves to the decision.
package scalesets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Store is the durable state as far as scale sets need it.
type Store interface {
	// Ingest stores the content of a message, and the message's id with it.
	Ingest(context.Context, fleet.Ingest) (fleet.Ingested, error)
	ScaleSets(context.Context) ([]fleet.ScaleSet, error)
	UseScaleSet(ctx context.Context, pool string, scope fleet.Scope, name string, id int64) (fleet.ScaleSet, error)
	KeepSession(ctx context.Context, pool, session string) error
	DropScaleSet(ctx context.Context, pool string) error
	// SetJobs returns the jobs of a pool's scale set that are not over.
	SetJobs(ctx context.Context, pool string) ([]fleet.Job, error)
	State(context.Context) (fleet.State, error)
	// Changed returns a channel that is closed at the next change.
	Changed() <-chan struct{}
}

// GitHub is what the App does for scale sets. Its errors are those of package fleet.
type GitHub interface {
	// RegistrationToken returns a token by which runners are registered in a scope.
	RegistrationToken(ctx context.Context, scope fleet.Scope) (secret.Text, error)
	// RunJobs returns the jobs of a run in its latest attempt, none if there is no such run.
	RunJobs(ctx context.Context, repo fleet.Scope, run int64) ([]fleet.JobNews, error)
}

// Config wires Sets. Store, GitHub and WebURL have no default.
type Config struct {
	Store  Store
	GitHub GitHub
	Pools  []fleet.Pool // those without a scale set are left alone
	// WebURL is where people find GitHub, such as https://github.com.
	WebURL string
	// Owner tells others whose message session it is. "" means minifleet.
	Owner   string
	Version string
	// Every is after how long without a message the count of jobs is asked for again though
	// nothing is amiss. 0 means 5 min.
	Every time.Duration
	// Absence is how long the books must differ from GitHub's count, while messages come,
	// before that counts. 0 means 3 min.
	Absence time.Duration
	// HostDeadline is how long a host may be silent and still counts as room. 0 means 1 min.
	HostDeadline time.Duration
	// Retry is the pause after a failure; it is doubled with each in a row, up to a minute.
	// While somebody else reads a queue the pause is thirty times as long. 0 means 1 s.
	Retry time.Duration
	Wake  func() // called when there is news; must not block. nil: nobody
	// PassedOver is called for each message that is not understood; must not block. nil: nobody
	PassedOver func(pool string)
	Observe    func(Call)        // called after each request; must not block. nil: nobody
	Transport  http.RoundTripper // nil: an own one
	Log        *slog.Logger
}

// Sets are the scale sets of all pools that have one.
type Sets struct {
	c       Config
	started time.Time
	sets    map[string]*set // by pool
	owned   *http.Transport // nil if the transport is another's
}

// New returns Sets that Run starts. It does not call GitHub.
func New(c Config) (*Sets, error) {
	if c.Store == nil || c.GitHub == nil || c.WebURL == "" {
		return nil, errors.New("scale sets: store, GitHub and its address are required")
	}
	c.Every, c.Absence, c.HostDeadline = cmp.Or(c.Every, 5*time.Minute), cmp.Or(c.Absence, 3*time.Minute), cmp.Or(c.HostDeadline, time.Minute)
	c.Retry, c.Owner = cmp.Or(c.Retry, time.Second), cmp.Or(c.Owner, "minifleet")
	if c.Wake == nil {
		c.Wake = func() {}
	}
	if c.Observe == nil {
		c.Observe = func(Call) {}
	}
	if c.PassedOver == nil {
		c.PassedOver = func(string) {}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	s := &Sets{c: c, started: time.Now(), sets: map[string]*set{}}
	if c.Transport == nil {
		s.owned = &http.Transport{Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, TLSHandshakeTimeout: 10 * time.Second}
		s.c.Transport = s.owned
	}
	for _, p := range c.Pools {
		if p.ScaleSet == "" {
			continue
		}
		if len(p.Scopes) != 1 {
			return nil, fmt.Errorf("pool %s: a scale set has one scope", p.Name)
		}
		one, err := s.newSet(p)
		if err != nil {
			return nil, fmt.Errorf("pool %s: %w", p.Name, err)
		}
		s.sets[p.Name] = one
	}
	return s, nil
}

// patience is for how many periods missing knowledge counts as missing.
const patience = 3

// Fresh reports whether GitHub has told of every set's jobs since the start, or has been
// silent for so long that what is known has to do.
func (s *Sets) Fresh() bool {
	if time.Since(s.started) >= patience*s.c.Every {
		return true
	}
	for _, one := range s.sets {
		if !one.fresh.Load() {
			return false
		}
	}
	return true
}

// Run reads the queues of all sets until ctx ends, and returns when their sessions are
// closed.
func (s *Sets) Run(ctx context.Context) error {
	if s.owned != nil {
		defer s.owned.CloseIdleConnections()
	}
	enough := time.AfterFunc(time.Until(s.started.Add(patience*s.c.Every)), s.c.Wake)
	defer enough.Stop()
	var all sync.WaitGroup
	all.Go(func() { s.forget(ctx) })
	for _, one := range s.sets {
		all.Go(func() { one.run(ctx) })
	}
	all.Wait()
	return nil
}

// forget drops the scale sets of pools that have none any more. A session that was left
// open is closed; the set itself stays at GitHub.
func (s *Sets) forget(ctx context.Context) {
	kept, err := s.c.Store.ScaleSets(ctx)
	if err != nil {
		s.c.Log.Warn("scale sets not read", "error", err)
		return
	}
	for _, k := range kept {
		if s.sets[k.Pool] != nil {
			continue
		}
		if k.Session != "" {
			if one, err := s.newSet(fleet.Pool{Name: k.Pool, ScaleSet: k.Name, Scopes: []fleet.Scope{k.Scope}}); err == nil {
				err = one.end(ctx, k.ID, k.Session)
				if err != nil && ctx.Err() == nil {
					s.c.Log.Warn("message session not closed; GitHub ends it after some minutes", "pool", k.Pool, "error", err)
				}
			}
		}
		if err := s.c.Store.DropScaleSet(ctx, k.Pool); err != nil {
			s.c.Log.Warn("scale set not forgotten", "pool", k.Pool, "error", err)
			continue
		}
		s.c.Log.Info("the pool has no scale set any more; delete it at GitHub if nothing else uses it", "pool", k.Pool, "scale_set", k.Name, "scope", k.Scope.String())
	}
}
