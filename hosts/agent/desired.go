// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// defaultPoll is the wait of a desired call where the controller names none.
const defaultPoll = 20 * time.Second

// refusedPause is the pause after an answer that only an operator can change.
const refusedPause = 30 * time.Second

// followDesired asks what is wanted, over and over, and acts on it.
func (a *Agent) followDesired(ctx context.Context) error {
	pause := backoff{first: 200 * time.Millisecond, most: 15 * time.Second}
	trouble := outage{log: a.log, what: "desired"}
	for {
		// After a failure the first answer shall come at once, and all that is known of
		// this host goes back: the controller may have begun anew, and act on nothing
		// that it has not heard since.
		err := a.askDesired(ctx, trouble.count > 0)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case final(err):
			return explainFinal(err)
		case err == nil:
			pause.reset()
			if trouble.count > 0 {
				a.changed()
			}
			trouble.worked()
			continue
		case errors.Is(err, errSlept):
			continue // this time without waiting for an old connection
		}
		trouble.failed(err)
		wait := pause.next()
		if codeOf(err) == protocol.CodeCredential {
			wait = around(refusedPause)
		}
		if !sleep(ctx, wait) {
			return context.Cause(ctx)
		}
	}
}

func (a *Agent) askDesired(ctx context.Context, atOnce bool) error {
	a.mu.Lock()
	revision := a.revision
	wait := time.Duration(a.welcome.PollSeconds) * time.Second
	acked := a.ackedGone()
	a.mu.Unlock()
	if wait <= 0 {
		wait = defaultPoll
	}
	if atOnce {
		wait = 0
	}
	call, done := a.clock.interruptible(ctx)
	defer done()
	d, err := a.client.desired(call, a.credential, a.instance, revision, min(around(wait), protocol.MaxWait))
	if err != nil {
		if errors.Is(context.Cause(call), errSlept) {
			return errSlept
		}
		return err
	}
	crashpoint.Reached(crashpoint.DesiredReceived)
	if err := a.checkSite(d.Site, d.Epoch); err != nil {
		return err
	}
	// Before anything is begun under it: a new runner must not meet a lease that ended.
	a.clock.exchanged()
	a.setLease(leaseHeld)
	return a.apply(ctx, d, acked)
}

// ackedGone returns the runners that the controller knows to be gone. The caller
// holds a.mu.
func (a *Agent) ackedGone() map[string]bool {
	acked := map[string]bool{}
	for id, r := range a.runners {
		if r.over && r.goneAcked {
			acked[id] = true
		}
	}
	return acked
}

// apply acts on a newer word of the controller. What it does not mention lives on.
func (a *Agent) apply(ctx context.Context, d protocol.Desired, acked map[string]bool) error {
	if err := a.admit(ctx, d, acked); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.DesiredApplied)
	return a.forgetDelisted()
}

// admit takes in what is wanted, and notes which runners the controller has let go.
func (a *Agent) admit(ctx context.Context, d protocol.Desired, acked map[string]bool) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	newEpoch := d.Epoch > a.obeyed.Epoch || a.obeyed.Site != d.Site || a.obeyed.Host != a.identity.Host
	if oldest := max(a.revision, a.obeyed.Revision); !newEpoch && d.Revision < oldest {
		return fmt.Errorf("the controller speaks of revision %d after %d: it is not obeyed; if it was restored from an old copy, raise its epoch", d.Revision, oldest)
	}
	if newEpoch {
		next := obeyed{Site: d.Site, Host: a.identity.Host, Epoch: d.Epoch}
		if err := a.state.saveObeyed(next); err != nil {
			return fmt.Errorf("keep the controller's epoch: %w", err)
		}
		crashpoint.Reached(crashpoint.EpochWritten)
		a.obeyed = next
	}
	a.prefetch.want(d.Images)
	a.peers.learn(d)
	listed := make(map[string]bool, len(d.Runners))
	for _, want := range d.Runners {
		listed[want.ID] = true
		a.want(ctx, want, d.Revision)
	}
	for id, r := range a.runners {
		// Either it was listed and a newer word leaves it out, or the controller was asked
		// when it knew already that the runner is gone. An answer that was under way while
		// the report of its end was, proves nothing.
		r.delisted = !listed[id] && (r.delisted || acked[id] || r.revision > 0 && d.Revision > r.revision)
	}
	if a.revision != d.Revision {
		a.revision = d.Revision
		a.changed() // a report tells which word was acted on
	}
	return nil
}

// forgetDelisted forgets runners that are gone, when the controller knows it and has
// let them go.
func (a *Agent) forgetDelisted() error {
	a.forgetting.Lock()
	defer a.forgetting.Unlock()
	a.mu.Lock()
	var forget []string
	for id, r := range a.runners {
		if r.over && r.goneAcked && r.delisted {
			forget = append(forget, id)
		}
	}
	revision := a.revision
	a.mu.Unlock()
	if len(forget) == 0 {
		return nil
	}
	// The revision is kept before the tombstones go: an older desired, from before
	// these runners were gone, must find one of the two.
	if err := a.keepRevision(revision); err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.RevisionWritten)
	for _, id := range forget {
		if err := a.state.dropTombstone(id); err != nil {
			a.log.Warn("a tombstone stays", slog.String("runner", id), slog.Any("error", err))
			continue
		}
		crashpoint.Reached(crashpoint.TombstoneDropped)
		a.mu.Lock()
		delete(a.runners, id)
		a.mu.Unlock()
	}
	a.changed()
	return nil
}

func (a *Agent) keepRevision(revision int64) error {
	a.mu.Lock()
	next := a.obeyed
	a.mu.Unlock()
	if next.Revision == revision {
		return nil
	}
	next.Revision = revision
	if err := a.state.saveObeyed(next); err != nil {
		return fmt.Errorf("keep the controller's revision: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.obeyed.Epoch == next.Epoch {
		a.obeyed = next
	}
	return nil
}
