// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Pools returns the connection pools, so that tests see what holds on each
// connection.
func (s *Store) Pools() map[string]*sql.DB {
	return map[string]*sql.DB{"write": s.write, "read": s.read}
}

// Together carries out changes in one commit, as if their callers had come at the same
// moment; a context that is done is that of a caller who has left.
func (s *Store) Together(callers []context.Context, changes []func(exec func(query string, args ...any) error) error) []error {
	list := make([]*request, len(changes))
	for i, f := range changes {
		list[i] = &request{ctx: callers[i], do: func(t *tx) error { return f(t.exec) }, done: make(chan error, 1)}
	}
	s.commit(list, false)
	errs := make([]error, len(list))
	for i, r := range list {
		errs[i] = <-r.done
	}
	return errs
}

// Reread returns the state as the database alone has it.
func (s *Store) Reread(ctx context.Context) (fleet.State, map[fleet.HostID][]fleet.DesiredRunner, error) {
	m := newMirror()
	if err := m.load(ctx, s.read, s.now()); err != nil {
		return fleet.State{}, nil, err
	}
	desired := map[fleet.HostID][]fleet.DesiredRunner{}
	for id := range m.hosts.byKey {
		_, desired[id], _, _ = m.desired(id)
	}
	return m.state(s.now()), desired, nil
}

// UnsettledReread returns what Unsettled does, as the database alone has it.
func (s *Store) UnsettledReread(ctx context.Context, owner string, since time.Time) ([]fleet.Job, []fleet.Runner, error) {
	m := newMirror()
	if err := m.load(ctx, s.read, s.now()); err != nil {
		return nil, nil, err
	}
	jobs, runners := m.unsettled(owner, since)
	return jobs, runners, nil
}
