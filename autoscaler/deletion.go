// SPDX-License-Identifier: MIT

package autoscaler

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// givenUp is how long a deletion that GitHub refuses is repeated: an ephemeral
// runner that was offline for a day is removed by GitHub itself.
const givenUp = 25 * time.Hour

// delete carries out one recorded deletion and confirms what became of it.
func (l *Loop) delete(ctx context.Context, d fleet.Deletion) {
	defer func() {
		l.mu.Lock()
		delete(l.deleting, d.Runner)
		l.mu.Unlock()
		l.Wake()
	}()
	var age time.Duration
	if !d.Since.IsZero() {
		age = time.Since(d.Since)
	}
	crashpoint.Reached(crashpoint.DeleteIntended)
	err := l.c.GitHub.Unregister(ctx, d.Ref)
	if ctx.Err() != nil {
		return // recorded as deleting: the next run repeats it
	}
	var limited *fleet.RateLimited
	log := l.c.Log.With("runner", d.Runner, "registration", d.Ref.Name, "scope", d.Ref.Scope.String())
	switch {
	case err == nil:
		crashpoint.Reached(crashpoint.DeleteDone)
		l.noteDeleted(log, d.Runner)
		err = l.c.Store.RegistrationDeleted(ctx, d.Runner, d.Attempt)
	case errors.Is(err, fleet.ErrRunnerBusy):
		crashpoint.Reached(crashpoint.DeleteVetoed)
		log.Info("registration not deleted: GitHub says that it runs a job")
		l.settled(d.Runner)
		err = l.c.Store.DeleteVetoed(ctx, d.Runner, d.Attempt, time.Now().Add(time.Minute))
	case errors.As(err, &limited):
		l.noteUndeleted(log, d.Runner, err)
		err = l.c.Store.DeleteFailed(ctx, d.Runner, d.Attempt, limited.Until)
	case errors.Is(err, fleet.ErrRefused) && age > givenUp:
		l.settled(d.Runner)
		log.Error("registration given up: GitHub refuses to delete it, and removes it by itself when it was offline for a day", "error", err)
		err = l.c.Store.RegistrationDeleted(ctx, d.Runner, d.Attempt)
	default:
		crashpoint.Reached(crashpoint.DeleteFailed)
		l.noteUndeleted(log, d.Runner, err)
		pause := min(max(10*time.Second, age/2), 10*time.Minute)
		err = l.c.Store.DeleteFailed(ctx, d.Runner, d.Attempt, time.Now().Add(pause))
	}
	if err != nil && ctx.Err() == nil {
		log.Error("outcome of a deletion not stored", "error", err)
		pause(ctx, time.Second) // the store is in trouble: do not ask GitHub in a circle
	}
}

// noteUndeleted logs a deletion that failed: the first time as a warning, since it is
// repeated by itself for as long as a day.
func (l *Loop) noteUndeleted(log *slog.Logger, id fleet.RunnerID, err error) {
	l.mu.Lock()
	since, warned := l.undeleted[id]
	if !warned {
		l.undeleted[id] = time.Now()
	}
	l.mu.Unlock()
	if warned {
		log.Debug("registration still not deleted", "error", err, "for", time.Since(since))
		return
	}
	log.Warn("registration not deleted yet", "error", err)
}

// noteDeleted takes back the warning of a deletion that failed.
func (l *Loop) noteDeleted(log *slog.Logger, id fleet.RunnerID) {
	if since, warned := l.settled(id); warned {
		log.Info("registration deleted at last", "after", time.Since(since))
	}
}

// settled ends what a runner's deletion was warned of.
func (l *Loop) settled(id fleet.RunnerID) (since time.Time, warned bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	since, warned = l.undeleted[id]
	delete(l.undeleted, id)
	return since, warned
}
