// SPDX-License-Identifier: MIT

package store

import (
	"context"

	"github.com/minifleet/minifleet/fleet"
)

// State returns, of one moment, all that a decision is made from. Its lists are shared
// with others that asked: nobody may write to them. When a host was heard of may be a
// second older, which is nothing beside any deadline; its revision and the number of its
// newest report may be older still, as no decision rests on them.
func (s *Store) State(ctx context.Context) (fleet.State, error) {
	if err := ctx.Err(); err != nil {
		return fleet.State{}, context.Cause(ctx)
	}
	if err := s.ended(); err != nil {
		return fleet.State{}, err
	}
	return s.mirror.state(s.now()), nil
}
