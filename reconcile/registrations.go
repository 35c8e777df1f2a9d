// SPDX-License-Identifier: MIT

package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// sweep compares the registrations of a scope with the books, in both directions. A
// registration of this site that has been without a runner in the books at every look
// for long enough is deleted; of an idle runner whose registration has been missing
// for as long it is noted that it is gone, and the decision ends it. Whatever is
// amiss with a listing, nothing is made of it.
func (w *watcher) sweep(ctx context.Context, scope fleet.Scope, odd *suspects) (again time.Time, err error) {
	if ready := w.started.Add(w.c.HostDeadline); time.Now().Before(ready) {
		return ready, nil // agents may hold registrations that an older database has not
	}
	_, runners, err := w.c.Store.Unsettled(ctx, w.owner, time.Now())
	if err != nil {
		return again, err
	}
	list, err := w.c.GitHub.Registrations(ctx, scope)
	if err != nil {
		return again, fmt.Errorf("list registrations of %s: %w", scope, err)
	}
	// Read after the list: what it shows was in the books before it was at GitHub.
	standing, err := w.c.Store.StandingNames(ctx)
	if err != nil {
		return again, err
	}
	orphans, ghosts := w.orphans(list, standing), ghosts(scope, runners, list)
	var keys []string
	for _, o := range orphans {
		keys = append(keys, orphanKey(o))
	}
	for _, g := range ghosts {
		keys = append(keys, ghostKey(g))
	}
	sure, again := odd.see(time.Now(), w.c.Absence, keys, nil)
	var failed failures
	for _, o := range orphans {
		if sure[orphanKey(o)] && !failed.hopeless(ctx) {
			failed.add(w.deleteOrphan(ctx, scope, o))
		}
	}
	for _, g := range ghosts {
		if sure[ghostKey(g)] && !failed.hopeless(ctx) {
			failed.add(w.noteGhost(ctx, scope, g))
		}
	}
	return again, failed.joined()
}

func orphanKey(l fleet.Listed) string { return fmt.Sprintf("registration %d", l.ID) }

func ghostKey(r fleet.Runner) string { return fmt.Sprintf("runner %s attempt %d", r.ID, r.Attempt) }

// orphans returns the registrations that are this site's and no runner's. One that is
// online has a listener, and so a VM somewhere; it and a busy one are left alone.
func (w *watcher) orphans(list []fleet.Listed, standing map[string]bool) []fleet.Listed {
	var out []fleet.Listed
	for _, l := range list {
		if w.orphaned(l, standing) {
			out = append(out, l)
		}
	}
	return out
}

func (w *watcher) orphaned(l fleet.Listed, standing map[string]bool) bool {
	return w.c.Ours(l.Name) && !standing[strings.ToLower(l.Name)] && !l.Online && !l.Busy
}

// ghosts returns the runners that listen and whose registrations are not listed.
func ghosts(scope fleet.Scope, runners []fleet.Runner, list []fleet.Listed) []fleet.Runner {
	there := map[int64]bool{}
	for _, l := range list {
		there[l.ID] = true
	}
	var out []fleet.Runner
	for _, r := range runners {
		listens := r.Phase() == fleet.PhaseIdle && r.Registration == fleet.RegMinted && r.GitHubID != 0 && r.Job == 0
		if listens && r.Scope.Key() == scope.Key() && !there[r.GitHubID] {
			out = append(out, r)
		}
	}
	return out
}

// deleteOrphan deletes a registration if it is an orphan still.
func (w *watcher) deleteOrphan(ctx context.Context, scope fleet.Scope, o fleet.Listed) error {
	now, there, err := w.c.GitHub.Registration(ctx, scope, o.ID)
	if err != nil {
		return fmt.Errorf("look at registration %s of %s: %w", o.Name, scope, err)
	}
	standing, err := w.c.Store.StandingNames(ctx)
	if err != nil {
		return err
	}
	if !there || !w.orphaned(now, standing) {
		return nil
	}
	err = w.c.GitHub.Unregister(ctx, fleet.RegistrationRef{Scope: scope, Name: now.Name, ID: now.ID})
	switch {
	case err == nil:
		w.c.Log.Warn("registration deleted: no runner in the books has it", "registration", now.Name, "scope", scope.String())
		return nil
	case errors.Is(err, fleet.ErrRunnerBusy):
		w.c.Log.Info("registration without a runner not deleted: GitHub says that it runs a job", "registration", now.Name, "scope", scope.String())
		return nil
	default:
		return fmt.Errorf("delete registration %s of %s: %w", now.Name, scope, err)
	}
}

// noteGhost notes that a runner's registration is gone if GitHub says so of its very id.
func (w *watcher) noteGhost(ctx context.Context, scope fleet.Scope, r fleet.Runner) error {
	_, there, err := w.c.GitHub.Registration(ctx, scope, r.GitHubID)
	if err != nil {
		return fmt.Errorf("look at registration %s of %s: %w", r.RunnerName, scope, err)
	}
	if there {
		return nil
	}
	w.c.Log.Warn("registration of an idle runner is gone", "runner", r.ID, "registration", r.RunnerName, "scope", scope.String())
	return w.c.Store.RegistrationLost(ctx, r.ID, r.Attempt)
}
