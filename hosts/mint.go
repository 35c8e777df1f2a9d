// SPDX-License-Identifier: MIT

package hosts

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// mintTries bounds the names tried in one request: a taken name is chance, several
// in a row are trouble that a retry does not mend.
const mintTries = 3

// Mint registers a runner that holds a grant. The attempt and its name are
// committed before GitHub is asked. A registration that an earlier attempt may
// have left is deleted first; GitHub's refusal to do so means that it runs a job,
// and is final. One request at a time walks the flow for a runner: a second one
// would not find at GitHub what the first is about to make there.
func (s *Server) Mint(ctx context.Context, host fleet.HostID, id fleet.RunnerID) (name string, config secret.Text, policy *trust.Policy, err error) {
	if !s.minting.begin(id) {
		return "", secret.Text{}, nil, fmt.Errorf("runner %s: an earlier mint is under way: %w", id, fleet.ErrLater)
	}
	defer s.minting.end(id)
	for range 2 * mintTries {
		m, err := s.begin(ctx, host, id)
		if err != nil {
			return "", secret.Text{}, nil, err
		}
		if m.Earlier != nil {
			if err := s.deleteEarlier(ctx, m); err != nil {
				return "", secret.Text{}, nil, err
			}
			continue
		}
		pool, ok := s.pools[m.Pool]
		if !ok {
			err := fmt.Errorf("%w: pool %s is not configured any more", fleet.ErrRefused, m.Pool)
			return "", secret.Text{}, nil, errors.Join(err, s.c.Store.MintRefused(ctx, id, m.Attempt, err.Error(), true))
		}
		if !slices.ContainsFunc(pool.Scopes, func(have fleet.Scope) bool { return have.Key() == m.Scope.Key() }) {
			err := fmt.Errorf("%w: pool %s does not serve %s", fleet.ErrRefused, m.Pool, m.Scope)
			return "", secret.Text{}, nil, errors.Join(err, s.c.Store.MintRefused(ctx, id, m.Attempt, err.Error(), true))
		}
		crashpoint.Reached(crashpoint.MintCommitted)
		reg, err := s.c.GitHub.Register(ctx, pool, m.Scope, m.Name)
		var limited *fleet.RateLimited
		switch {
		case err == nil:
			crashpoint.Reached(crashpoint.MintRegistered)
			if err := s.c.Store.Granted(ctx, id, m.Attempt, reg.ID); err != nil {
				return "", secret.Text{}, nil, err // the config is dropped; the next request deletes the registration
			}
			crashpoint.Reached(crashpoint.MintGranted)
			return m.Name, reg.Config, &pool.Trust, nil
		case errors.Is(err, fleet.ErrNameTaken), errors.Is(err, fleet.ErrRefused), errors.Is(err, fleet.ErrLater), errors.As(err, &limited):
			crashpoint.Reached(crashpoint.MintRefused)
			if err := s.c.Store.MintRefused(ctx, id, m.Attempt, err.Error(), errors.Is(err, fleet.ErrRefused)); err != nil {
				return "", secret.Text{}, nil, err
			}
			if !errors.Is(err, fleet.ErrNameTaken) {
				return "", secret.Text{}, nil, err
			}
		default:
			// It may exist: it stays committed, and the next request deletes it first.
			return "", secret.Text{}, nil, err
		}
	}
	return "", secret.Text{}, nil, fmt.Errorf("runner %s: %w", id, fleet.ErrLater)
}

// inFlight knows the runners for which a mint is under way.
type inFlight struct {
	mu  sync.Mutex // guards ids
	ids map[fleet.RunnerID]bool
}

func (f *inFlight) begin(id fleet.RunnerID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ids[id] {
		return false
	}
	if f.ids == nil {
		f.ids = map[fleet.RunnerID]bool{}
	}
	f.ids[id] = true
	return true
}

func (f *inFlight) end(id fleet.RunnerID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.ids, id)
}

// begin commits the next step of the flow under a name never used before.
func (s *Server) begin(ctx context.Context, host fleet.HostID, id fleet.RunnerID) (fleet.Mint, error) {
	r, _, err := s.c.Store.Runner(ctx, id) // whether it is there, and this host's, BeginMint says
	if err != nil {
		return fleet.Mint{}, err
	}
	if s.c.Held != nil && !r.Scope.IsZero() {
		if err := s.c.Held(r.Scope); err != nil {
			return fleet.Mint{}, err
		}
	}
	return s.c.Store.BeginMint(ctx, host, id, s.c.Name(s.c.Store.Site(), r.Pool))
}

func (s *Server) deleteEarlier(ctx context.Context, m fleet.Mint) error {
	crashpoint.Reached(crashpoint.EarlierIntended)
	err := s.c.GitHub.Unregister(ctx, *m.Earlier)
	switch {
	case err == nil:
		crashpoint.Reached(crashpoint.EarlierDeleted)
		return s.c.Store.RegistrationDeleted(ctx, m.Runner, m.Attempt)
	case errors.Is(err, fleet.ErrRunnerBusy):
		crashpoint.Reached(crashpoint.EarlierVetoed)
		return errors.Join(err, s.c.Store.DeleteVetoed(ctx, m.Runner, m.Attempt, time.Now().Add(time.Minute)))
	default:
		// GitHub's trouble, and not this controller's: the agent asks again.
		return fmt.Errorf("delete registration %s of an earlier attempt: %w: %w", m.Earlier.Name, fleet.ErrLater, err)
	}
}
