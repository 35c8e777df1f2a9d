// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// sparing is GitHub for a controller whose database may be a copy: the controller that
// it was copied from may run, and use the registrations that both know of. Those, and
// those that nobody here knows of, are not deleted.
type sparing struct {
	gitHubPort
	before time.Time // registrations begun earlier are spared; zero spares none
}

// Unregister deletes a registration of this controller's own.
func (p sparing) Unregister(ctx context.Context, ref fleet.RegistrationRef) error {
	if ref.Begun.Before(p.before) {
		return fmt.Errorf("%w: registration %s is left alone: this database is a copy, and its original may use it; see --replaces-old and --new-site of serve", fleet.ErrLater, ref.Name)
	}
	return p.gitHubPort.Unregister(ctx, ref)
}
