// SPDX-License-Identifier: MIT

package reconcile

import (
	"context"
	"time"
)

// Steps returns, for each owner, what Run does over and over for it: one step settles what
// is in doubt or does one chore, and says when to go on if nothing changes before. They are
// for a model of a site on one goroutine, in place of Run.
func (r *Reconciler) Steps() []func(context.Context) (next time.Time) {
	steps := make([]func(context.Context) time.Time, len(r.watchers))
	for i, w := range r.watchers {
		steps[i] = w.step
	}
	return steps
}
