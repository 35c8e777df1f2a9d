// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/metrics"
	"github.com/minifleet/minifleet/program"
	"github.com/minifleet/minifleet/store"
	"github.com/minifleet/minifleet/webhook"
)

// gitHubPort is the App as the domain sees it: its words, its errors.
type gitHubPort struct{ app *githubapp.Apps }

// Register makes a registration.
func (p gitHubPort) Register(ctx context.Context, pool fleet.Pool, scope fleet.Scope, name string) (fleet.Registered, error) {
	r, err := p.app.Register(ctx, githubapp.RegisterRequest{Scope: scope, Name: name, Labels: pool.LabelNames, Group: pool.RunnerGroup})
	if err == nil {
		return fleet.Registered{ID: r.ID, Config: r.Config}, nil
	}
	err = inDomain(err)
	var limited *fleet.RateLimited
	if errors.Is(err, fleet.ErrNameTaken) || errors.Is(err, fleet.ErrUncertain) || errors.Is(err, fleet.ErrRefused) || errors.As(err, &limited) {
		return fleet.Registered{}, err
	}
	// The client vouches that there is no registration, and nobody refused one.
	return fleet.Registered{}, fmt.Errorf("%w: %w", fleet.ErrLater, err)
}

// tooEarly is how long after a registration was asked for its absence from GitHub's
// list proves nothing: the list lags by seconds
// (github-aws-runners/terraform-aws-github-runner#4391). The job that waits for the
// runner waits so long, too. One that GitHub makes later still can be given no job, since
// nobody has its config, and is swept after its runner has ended.
const tooEarly = 20 * time.Second

// Unregister deletes a registration, found by name where its id was never known.
// That there is none is success.
func (p gitHubPort) Unregister(ctx context.Context, ref fleet.RegistrationRef) error {
	ctx = githubapp.WithPriority(ctx, githubapp.PriorityEnd)
	if ref.ID == 0 {
		if ref.Name == "" {
			return fmt.Errorf("%w: a registration without id and name cannot be found", fleet.ErrRefused)
		}
		r, found, err := p.app.FindRunner(ctx, ref.Scope, ref.Name)
		switch {
		case err != nil:
			return inDomain(err)
		case !found && time.Since(ref.Begun) < tooEarly:
			return fmt.Errorf("runner %s is not listed, which may be too early to tell: %w", ref.Name, fleet.ErrLater)
		case !found:
			return nil
		}
		ref.ID = r.ID
	}
	return inDomain(p.app.DeleteRunner(ctx, ref.Scope, ref.ID))
}

// ActiveJobs lists the jobs of a repository's runs that are not over.
func (p gitHubPort) ActiveJobs(ctx context.Context, repo fleet.Scope) ([]fleet.JobNews, error) {
	list, err := p.app.ActiveJobs(ctx, repo.Owner, repo.Repo)
	return list, inDomain(err)
}

// Job reads one job, and returns false if there is none of that id.
func (p gitHubPort) Job(ctx context.Context, repo fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error) {
	news, ok, err := p.app.GetJob(ctx, repo.Owner, repo.Repo, id)
	return news, ok, inDomain(err)
}

// Run reads one attempt of a run, and returns false if there is none.
func (p gitHubPort) Run(ctx context.Context, repo fleet.Scope, k fleet.RunKey) (fleet.Run, bool, error) {
	run, ok, err := p.app.GetRun(ctx, repo.Owner, repo.Repo, k)
	return run, ok, inDomain(err)
}

// Registrations lists all registrations of a scope, or fails.
func (p gitHubPort) Registrations(ctx context.Context, scope fleet.Scope) ([]fleet.Listed, error) {
	var out []fleet.Listed
	err := p.app.ListRunners(ctx, scope, func(r githubapp.Runner) bool {
		out = append(out, listed(r))
		return true
	})
	return out, inDomain(err)
}

// Registration reads one registration, and returns false if there is none of that id.
func (p gitHubPort) Registration(ctx context.Context, scope fleet.Scope, id int64) (fleet.Listed, bool, error) {
	r, ok, err := p.app.GetRunner(ctx, scope, id)
	return listed(r), ok, inDomain(err)
}

// OfferedRunners returns the versions of the runner that a scope is offered.
func (p gitHubPort) OfferedRunners(ctx context.Context, scope fleet.Scope) ([]string, error) {
	list, err := p.app.OfferedRunners(ctx, scope)
	return list, inDomain(err)
}

// RunnerReleases returns the newest releases of the runner with their dates.
func (p gitHubPort) RunnerReleases(ctx context.Context, scope fleet.Scope) ([]fleet.RunnerRelease, error) {
	list, err := p.app.RunnerReleases(ctx, scope)
	return list, inDomain(err)
}

func listed(r githubapp.Runner) fleet.Listed {
	return fleet.Listed{ID: r.ID, Name: r.Name, Online: r.Online, Busy: r.Busy}
}

// Covered lists the repositories that the installation of a scope covers.
func (p gitHubPort) Covered(ctx context.Context, scope fleet.Scope) ([]fleet.Scope, error) {
	list, err := p.app.Repositories(ctx, scope)
	return list, inDomain(err)
}

// Deliveries returns a page of GitHub's list of the App's deliveries.
func (p gitHubPort) Deliveries(ctx context.Context, cursor string) ([]fleet.Attempt, string, error) {
	page, next, err := p.app.Deliveries(ctx, cursor)
	return page, next, inDomain(err)
}

// Delivery reads what an attempt to deliver held.
func (p gitHubPort) Delivery(ctx context.Context, of fleet.Attempt) (fleet.Pulled, bool, error) {
	d, ok, err := p.app.Delivery(ctx, of)
	return d, ok, inDomain(err)
}

// Redeliver asks for another attempt.
func (p gitHubPort) Redeliver(ctx context.Context, of fleet.Attempt) (bool, error) {
	ok, err := p.app.Redeliver(ctx, of)
	return ok, inDomain(err)
}

// pulled takes deliveries that GitHub has shown instead of pushing them. That its API has
// answered with them makes them authentic.
type pulled struct{ hooks *webhook.Handler }

func (p pulled) take(ctx context.Context, d fleet.Pulled) error {
	_, err := p.hooks.Take(ctx, webhook.Envelope{
		GUID: d.GUID, Event: d.Event, TargetType: d.TargetType, TargetID: d.TargetID, ContentType: d.ContentType, Payload: d.Payload,
	})
	if errors.Is(err, webhook.ErrEnvelope) {
		return fmt.Errorf("%w: %w", fleet.ErrRefused, err)
	}
	return err
}

// inDomain adds the domain's name for an error of GitHub's.
func inDomain(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, githubapp.ErrUncertain) { // whatever else it is: before all, it may have taken effect
		return fmt.Errorf("%w: %w", fleet.ErrUncertain, err)
	}
	var limited *githubapp.RateLimited
	if errors.As(err, &limited) {
		return &fleet.RateLimited{Until: limited.Until, Outage: limited.Outage}
	}
	switch {
	case errors.Is(err, githubapp.ErrNameTaken):
		return fmt.Errorf("%w: %w", fleet.ErrNameTaken, err)
	case errors.Is(err, githubapp.ErrBusy):
		return fmt.Errorf("%w: %w", fleet.ErrRunnerBusy, err)
	case errors.Is(err, githubapp.ErrRefused), errors.Is(err, githubapp.ErrGroup), errors.Is(err, githubapp.ErrNotInstalled):
		return fmt.Errorf("%w: %w", fleet.ErrRefused, err)
	default:
		return err
	}
}

// ingest stores deliveries, and lets the App forget what it remembers of an
// installation that there is news of.
type ingest struct {
	*store.Store
	app     *githubapp.Apps
	news    chan<- struct{} // written to when an installation changed
	anew    func()          // called then
	metrics *metrics.Metrics
}

// Ingest stores a delivery.
func (i ingest) Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	done, err := i.Store.Ingest(ctx, in)
	if err == nil && in.Delivery.Status != "" && !done.Duplicate {
		i.metrics.Delivered(in.Delivery.Status)
	}
	if err == nil && in.Installation != nil {
		i.app.NoteInstallation(*in.Installation)
		i.anew()
		select {
		case i.news <- struct{}{}:
		default:
		}
	}
	return done, err
}

// rates are GitHub's last words on its limits, for the metrics.
func (p gitHubPort) rates() []metrics.Rate {
	var out []metrics.Rate
	for _, r := range p.app.Rates() {
		out = append(out, metrics.Rate{App: r.AppID, Installation: r.InstallationID, Resource: r.Resource, Limit: r.Limit, Remaining: r.Remaining, Reset: r.Reset})
	}
	return out
}

// observe counts the App's calls.
func observe(m *metrics.Metrics) func(githubapp.Call) {
	return func(c githubapp.Call) {
		status := answered(c.Status)
		if c.Held {
			status = "held"
		}
		m.Called(c.AppID, c.Installation, string(c.Class), status, c.Took)
	}
}

// answered is the status of an answer in the metrics' words.
func answered(status int) string {
	if status == 0 {
		return "none"
	}
	return strconv.Itoa(status)
}

// apps are how the Apps fare, for the metrics.
func (p gitHubPort) apps() []metrics.App {
	var out []metrics.App
	for _, a := range p.app.All() {
		_, _, unreachable := a.Outage()
		out = append(out, metrics.App{ID: a.ID(), Unreachable: unreachable, Queued: a.Queued()})
	}
	return out
}

// held returns an error where no registration would be asked for now.
func (p gitHubPort) held(scope fleet.Scope) error {
	if limited := p.app.Held(scope); limited != nil {
		return inDomain(limited)
	}
	return nil
}

// newApps makes the Apps of the configuration.
func (s *settings) newApps(m *metrics.Metrics, changed func(), wire http.RoundTripper, log *slog.Logger) (*githubapp.Apps, error) {
	var all []*githubapp.App
	shared := &githubapp.Registrations{}
	for _, c := range s.GitHub.apps() {
		a, err := githubapp.New(githubapp.Config{
			AppID: c.AppID, PrivateKey: c.PrivateKey, BaseURL: s.GitHub.URL, Transport: wire, UserAgent: "minifleet/" + program.Version(),
			Limits: githubapp.Limits(s.GitHub.Limits), Registrations: shared, Changed: changed, Observe: observe(m), Log: log,
		})
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return githubapp.NewApps(all[0], all[1:]...), nil
}
