// SPDX-License-Identifier: MIT

package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// Envelope is an authentic delivery, however it came here.
type Envelope struct {
	GUID        string // X-GitHub-Delivery
	Event       string // X-GitHub-Event
	TargetType  string // X-GitHub-Hook-Installation-Target-Type: "integration" for an App
	TargetID    int64  // X-GitHub-Hook-Installation-Target-ID: the App's id
	ContentType string // "" means application/json
	Payload     []byte // as signed
}

// Outcome is what became of a delivery.
type Outcome struct {
	Status    fleet.DeliveryStatus
	Reason    string
	Duplicate bool // its GUID was known and had not failed: nothing was done
}

// ErrEnvelope means that a delivery names no usable GUID or event, so that there
// is nothing to store it by.
var ErrEnvelope = errors.New("not a delivery")

// A GUID is GitHub's to choose: only what a key may hold is fixed here.
var (
	guidPattern  = regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`)
	eventPattern = regexp.MustCompile(`^[a-z0-9_]{1,64}$`)
)

// envelope reads a request's headers. They are not covered by the signature; only
// who knows the secret gets this far.
func envelope(h http.Header, body []byte) (Envelope, error) {
	env := Envelope{Payload: body}
	var ok bool
	if env.GUID, ok = single(h, "X-GitHub-Delivery"); !ok {
		return Envelope{}, fmt.Errorf("%w: want exactly one X-GitHub-Delivery header", ErrEnvelope)
	}
	if env.Event, ok = single(h, "X-GitHub-Event"); !ok {
		return Envelope{}, fmt.Errorf("%w: want exactly one X-GitHub-Event header", ErrEnvelope)
	}
	if env.ContentType, ok = single(h, "Content-Type"); !ok || env.ContentType == "" {
		env.ContentType = "none"
	}
	env.TargetType, _ = single(h, "X-GitHub-Hook-Installation-Target-Type")
	target, _ := single(h, "X-GitHub-Hook-Installation-Target-ID")
	env.TargetID, _ = strconv.ParseInt(target, 10, 64) // 0 is no App's id
	return env, nil
}

// Take reads an authentic delivery and stores it with its news in one
// transaction. What it says cannot make it an error: a delivery that means
// nothing here is stored as ignored, one that cannot be understood as failed.
// An error other than ErrEnvelope means that nothing was stored, or may not have
// been, and that the delivery must come again.
func (h *Handler) Take(ctx context.Context, env Envelope) (Outcome, error) {
	if !guidPattern.MatchString(env.GUID) {
		return Outcome{}, fmt.Errorf("%w: its GUID is not 1 to 64 letters, digits and dashes", ErrEnvelope)
	}
	if !eventPattern.MatchString(env.Event) {
		return Outcome{}, fmt.Errorf("%w: its event is not 1 to 64 lower-case letters, digits and underscores", ErrEnvelope)
	}
	in, err := h.judge(ctx, env)
	if err != nil {
		return Outcome{}, fmt.Errorf("delivery %s: %w", env.GUID, cause(ctx, err))
	}
	crashpoint.Reached(crashpoint.DeliveryJudged)
	done, err := h.store.Ingest(ctx, in)
	if err == nil && in.Delivery.Status == fleet.DeliveryFailed && in.Delivery.InstallationID != 0 {
		// The news of its installation may have been stored since it was judged, and those who
		// take early deliveries again may have found none: it is judged once more.
		if again, unread := h.judge(ctx, env); unread == nil && again.Delivery.Status != fleet.DeliveryFailed {
			in = again
			done, err = h.store.Ingest(ctx, in)
		}
	}
	if err != nil {
		return Outcome{}, fmt.Errorf("store delivery %s: %w", env.GUID, cause(ctx, err))
	}
	if done.Changed {
		h.wake()
	}
	h.record(ctx, in.Delivery, done)
	return Outcome{Status: in.Delivery.Status, Reason: in.Delivery.Reason, Duplicate: done.Duplicate}, nil
}

// Retry takes stored deliveries again: those that failed because they overtook the
// news of their installation.
func (h *Handler) Retry(ctx context.Context, stored []fleet.Delivery) error {
	for _, d := range stored {
		env := Envelope{GUID: d.GUID, Event: d.Event, TargetType: appTarget, TargetID: h.appID, Payload: d.Payload}
		if bytes.HasPrefix(d.Payload, []byte("payload=")) { // no JSON begins so
			env.ContentType = formType
		}
		if _, err := h.Take(ctx, env); err != nil {
			return err
		}
	}
	return nil
}

// Learn stores what GitHub answered about jobs of one repository, by the same
// transaction as a delivery's news and without a delivery. What a delivery of it would
// be ignored for, it is ignored for too.
func (h *Handler) Learn(ctx context.Context, repo fleet.Scope, answers []fleet.JobNews) error {
	answers = slices.DeleteFunc(slices.Clone(answers), func(n fleet.JobNews) bool {
		_, yes := h.claimed(n.Job)
		return yes && n.Event != fleet.SeenCompleted // of a job that the books have from before
	})
	if len(answers) == 0 || !h.serves(repo.Owner, repo.Repo) {
		return nil
	}
	done, err := h.store.Ingest(ctx, fleet.Ingest{Answers: answers})
	if err != nil {
		return fmt.Errorf("store what GitHub answered about jobs of %s: %w", repo, err)
	}
	if done.Changed {
		h.wake()
		h.log.InfoContext(ctx, "GitHub's answers differed from what was told", slog.String("repository", repo.String()), slog.Int("jobs", len(answers)))
	}
	return nil
}

// LearnRun stores what GitHub answered about a run, by the same transaction as a
// delivery's news and without a delivery.
func (h *Handler) LearnRun(ctx context.Context, run fleet.Run) error {
	done, err := h.store.Ingest(ctx, fleet.Ingest{Run: &run})
	if err != nil {
		return fmt.Errorf("store what GitHub answered about run %d of %s: %w", run.ID, run.Repository, err)
	}
	if done.Changed {
		h.wake()
	}
	return nil
}

// judge reads a delivery and decides whether it concerns us. Only the store's
// failure is an error.
func (h *Handler) judge(ctx context.Context, env Envelope) (fleet.Ingest, error) {
	read, v := parse(env)
	in := fleet.Ingest{Delivery: fleet.Delivery{
		GUID: env.GUID, Event: env.Event, Action: read.action,
		InstallationID: read.installationID, Repository: read.repo.String(),
		Payload: env.Payload, ReceivedAt: h.now(),
	}}
	if env.TargetType != appTarget || !h.knows(env.TargetID) || (read.appID != 0 && read.appID != env.TargetID) {
		v = h.notOurs(env, read)
	} else if v.status == fleet.DeliveryProcessed && (read.job != nil || read.run != nil) {
		var err error
		if v, err = h.concerns(ctx, read); err != nil {
			return fleet.Ingest{}, err
		}
	}
	if v.status == fleet.DeliveryProcessed {
		in.Job, in.Run, in.Installation = read.job, read.run, read.installation
	}
	in.Delivery.Status = v.status
	in.Delivery.Reason = clean(strings.ReplaceAll(v.reason, "\n", "; "), maxReason)
	return in, nil
}

// appTarget is the target type of deliveries to the webhook of a GitHub App.
const appTarget = "integration"

// notOurs says why a delivery that is not for this App is ignored.
func (h *Handler) notOurs(env Envelope, read reading) verdict {
	switch {
	case env.TargetType != appTarget:
		return ignored("its target type is %q, not %q: point only the GitHub App's own webhook here", clean(env.TargetType, 32), appTarget)
	case !h.knows(env.TargetID):
		return ignored("it is meant for App %d, this is App %d", env.TargetID, h.appID)
	default:
		return ignored("it tells of an installation of App %d, this is App %d", read.appID, env.TargetID)
	}
}

// concerns decides about news of a repository. An unknown installation in a
// repository that a pool serves is a failure, not nothing: the news of the
// installation may be on its way, and a redelivery then counts.
func (h *Handler) concerns(ctx context.Context, read reading) (verdict, error) {
	if !h.serves(read.repo.Owner, read.repo.Repo) {
		return ignored("foreign repository: no pool serves %s", read.repo), nil
	}
	if read.job != nil {
		if pool, yes := h.claimed(read.job.Job); yes {
			return ignored("the job is for the scale set of pool %s, whose own queue tells of it", pool), nil
		}
	}
	known, err := h.store.KnownInstallation(ctx, read.installationID)
	if err != nil {
		return verdict{}, fmt.Errorf("look up installation %d: %w", read.installationID, err)
	}
	if !known {
		return failed("unknown installation %d: install the App in %s, or redeliver once the installation is known", read.installationID, read.repo.Owner), nil
	}
	return processed(), nil
}

// record logs what became of a delivery, never what it holds.
func (h *Handler) record(ctx context.Context, d fleet.Delivery, done fleet.Ingested) {
	level := slog.LevelInfo
	if d.Status == fleet.DeliveryFailed {
		level = slog.LevelWarn
	}
	h.log.LogAttrs(ctx, level, "delivery taken",
		slog.String("delivery", d.GUID), slog.String("event", d.Event), slog.String("action", d.Action),
		slog.String("repository", d.Repository), slog.Int64("installation", d.InstallationID),
		slog.String("status", string(d.Status)), slog.String("reason", d.Reason),
		slog.Bool("duplicate", done.Duplicate), slog.Bool("changed", done.Changed))
}

// cause adds why a context ended to an error that came of it.
func cause(ctx context.Context, err error) error {
	if why := context.Cause(ctx); why != nil && !errors.Is(err, why) {
		return fmt.Errorf("%w: %w", why, err)
	}
	return err
}
