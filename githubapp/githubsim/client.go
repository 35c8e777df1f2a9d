// SPDX-License-Identifier: MIT

package githubsim

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Control drives a Sim in another process.
type Control struct {
	BaseURL string       // of the Sim
	Client  *http.Client // default: http.DefaultClient
}

// App returns the App's identity, its key and its webhook secret.
func (c Control) App(ctx context.Context) (App, error) {
	return ask[App](ctx, c, http.MethodGet, "app", nil)
}

// AddInstallation installs the App on an account.
func (c Control) AddInstallation(ctx context.Context, in Installation) (int64, error) {
	out, err := ask[struct {
		ID int64 `json:"id"`
	}](ctx, c, http.MethodPost, "installations", in)
	return out.ID, err
}

// Suspend suspends an installation, or ends its suspension.
func (c Control) Suspend(ctx context.Context, installation int64, suspended bool) error {
	what := "unsuspend"
	if suspended {
		what = "suspend"
	}
	return c.post(ctx, fmt.Sprintf("installations/%d/%s", installation, what), nil)
}

// QueueRun starts a workflow run.
func (c Control) QueueRun(ctx context.Context, w Workflow) (Run, error) {
	return ask[Run](ctx, c, http.MethodPost, "runs", toWire(w))
}

// CancelRun asks for the end of all jobs of a run.
func (c Control) CancelRun(ctx context.Context, id int64) error {
	return c.post(ctx, fmt.Sprintf("runs/%d/cancel", id), nil)
}

// Rerun starts a new attempt: of one job, or with job 0 of all that did not succeed.
func (c Control) Rerun(ctx context.Context, run, job int64) (Run, error) {
	return ask[Run](ctx, c, http.MethodPost, fmt.Sprintf("runs/%d/rerun?job=%d", run, job), nil)
}

// CancelJob asks for the end of one job.
func (c Control) CancelJob(ctx context.Context, id int64) error {
	return c.post(ctx, fmt.Sprintf("jobs/%d/cancel", id), nil)
}

// Approve opens the gate of a waiting job.
func (c Control) Approve(ctx context.Context, id int64) error {
	return c.post(ctx, fmt.Sprintf("jobs/%d/approve", id), nil)
}

// Redeliver sends a delivery again, under its GUID.
func (c Control) Redeliver(ctx context.Context, id int64) error {
	return c.post(ctx, fmt.Sprintf("deliveries/%d/redeliver", id), nil)
}

// Inject adds a fault. Its Match cannot travel and must be nil.
func (c Control) Inject(ctx context.Context, f Fault) error {
	if f.Match != nil {
		return errors.New("inject over the control API: Match cannot travel; use Method and Path")
	}
	return c.post(ctx, "faults", f)
}

// ClearFaults removes every fault that is still to come.
func (c Control) ClearFaults(ctx context.Context) error {
	_, err := ask[struct{}](ctx, c, http.MethodDelete, "faults", nil)
	return err
}

// SetWebhook points the App's hook at a URL and says whether deliveries are kind.
func (c Control) SetWebhook(ctx context.Context, w Webhook) error { return c.post(ctx, "webhook", w) }

// State returns everything at once.
func (c Control) State(ctx context.Context) (State, error) {
	return ask[State](ctx, c, http.MethodGet, "state", nil)
}

// Runs returns all runs.
func (c Control) Runs(ctx context.Context) ([]Run, error) {
	return ask[[]Run](ctx, c, http.MethodGet, "runs", nil)
}

// Jobs returns all jobs of all attempts.
func (c Control) Jobs(ctx context.Context) ([]Job, error) {
	return ask[[]Job](ctx, c, http.MethodGet, "jobs", nil)
}

// Job returns one job.
func (c Control) Job(ctx context.Context, id int64) (Job, error) {
	return ask[Job](ctx, c, http.MethodGet, fmt.Sprintf("jobs/%d", id), nil)
}

// Runners returns all registrations, removed ones included.
func (c Control) Runners(ctx context.Context) ([]Runner, error) {
	return ask[[]Runner](ctx, c, http.MethodGet, "runners", nil)
}

// ScaleSets returns all scale sets.
func (c Control) ScaleSets(ctx context.Context) ([]ScaleSet, error) {
	return ask[[]ScaleSet](ctx, c, http.MethodGet, "scalesets", nil)
}

// EndSetSessions ends all message sessions of scale sets.
func (c Control) EndSetSessions(ctx context.Context) error {
	return c.post(ctx, "scalesets/end", nil)
}

// Deliveries returns the attempts that have been made, oldest first.
func (c Control) Deliveries(ctx context.Context) ([]Delivery, error) {
	return ask[[]Delivery](ctx, c, http.MethodGet, "deliveries", nil)
}

// Requests returns the latest REST calls, oldest first.
func (c Control) Requests(ctx context.Context) ([]Request, error) {
	return ask[[]Request](ctx, c, http.MethodGet, "requests", nil)
}

// Wait blocks until anything has changed after the change since, or for the
// given time, and returns the number of the latest change.
func (c Control) Wait(ctx context.Context, since uint64, atMost time.Duration) (uint64, error) {
	out, err := ask[struct {
		Changes uint64 `json:"changes"`
	}](ctx, c, http.MethodGet, fmt.Sprintf("wait?since=%d&timeout=%s", since, atMost), nil)
	return out.Changes, err
}

// WaitJob blocks until a job has the status or is completed.
func (c Control) WaitJob(ctx context.Context, id int64, status string) (Job, error) {
	for {
		j, err := ask[Job](ctx, c, http.MethodGet, fmt.Sprintf("jobs/%d/wait?status=%s", id, url.QueryEscape(status)), nil)
		if err != nil || j.Status == status || j.Done() {
			return j, err
		}
	}
}

func (c Control) post(ctx context.Context, path string, in any) error {
	_, err := ask[struct{}](ctx, c, http.MethodPost, path, in)
	return err
}

// ask makes one call of the control API.
func ask[T any](ctx context.Context, c Control, method, path string, in any) (out T, err error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, fmt.Errorf("simulated github, %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.BaseURL, "/")+controlPrefix+path, body)
	if err != nil {
		return out, fmt.Errorf("simulated github, %s: %w", path, err)
	}
	client := c.Client
	if client == nil {
		client = http.DefaultClient
	}
	resp, err := client.Do(req)
	if err != nil {
		return out, fmt.Errorf("simulated github, %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		var problem struct {
			Message string `json:"message"`
		}
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what cannot be read leaves the status to tell
		if json.Unmarshal(b, &problem) != nil || problem.Message == "" {
			problem.Message = resp.Status
		}
		if resp.StatusCode == http.StatusNotFound {
			return out, fmt.Errorf("simulated github, %s: %s: %w", path, problem.Message, ErrNotFound)
		}
		return out, fmt.Errorf("simulated github, %s: %s", path, problem.Message)
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("simulated github, %s: read the answer: %w", path, err)
	}
	return out, nil
}
