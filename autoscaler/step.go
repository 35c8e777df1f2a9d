// SPDX-License-Identifier: MIT

package autoscaler

import (
	"context"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// Step makes and records one decision, for a model of a site on one goroutine; Run does
// the same over and over. It returns when to look again if nothing happens before, zero if
// nothing is due, and what to delete at GitHub: each is for Delete, some time later.
func (l *Loop) Step(ctx context.Context) (due time.Time, deletes []fleet.Deletion, err error) {
	due, _, deletes, err = l.once(ctx)
	return due, deletes, err
}

// Delete carries out one deletion of a Step's and records what became of it.
func (l *Loop) Delete(ctx context.Context, d fleet.Deletion) { l.delete(ctx, d) }

// Woken reports, once, whether there is something to decide on that the store does not
// know of.
func (l *Loop) Woken() bool {
	select {
	case <-l.wake:
		return true
	default:
		return false
	}
}
