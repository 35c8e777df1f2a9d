// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// controlPrefix is where the control API is: a path that GitHub does not have.
const controlPrefix = "/_sim/"

// App is what a controller needs to be the App.
type App struct {
	ID            int64  `json:"id"`
	Slug          string `json:"slug"`
	PrivateKeyPEM string `json:"private_key_pem"`
	WebhookSecret string `json:"webhook_secret"`
}

// State is everything of a Sim but its secrets.
type State struct {
	Changes    uint64     `json:"changes"`
	Runs       []Run      `json:"runs"`
	Jobs       []Job      `json:"jobs"`
	Runners    []Runner   `json:"runners"`
	Deliveries []Delivery `json:"deliveries"`
	Requests   []Request  `json:"requests"`
}

// Webhook is the hook's setting, as the control API takes it.
type Webhook struct {
	URL    string `json:"url"`
	Secret string `json:"secret,omitempty"` // empty: unchanged
	Kind   *bool  `json:"kind,omitempty"`   // nil: unchanged
}

// maxWait bounds a long poll of the control API.
const maxWait = time.Minute

// controlHandler serves the control API, by which another process drives the Sim.
func (s *Sim) controlHandler() http.Handler {
	mux := http.NewServeMux()
	get := func(path string, v func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET "+controlPrefix+path, func(w http.ResponseWriter, r *http.Request) { answerControl(w, r, v) })
	}
	post := func(path string, v func(r *http.Request) (any, error)) {
		mux.HandleFunc("POST "+controlPrefix+path, func(w http.ResponseWriter, r *http.Request) { answerControl(w, r, v) })
	}
	get("app", func(*http.Request) (any, error) {
		return App{s.opt.AppID, s.slug(), s.appPEM.Reveal(), s.WebhookSecret().Reveal()}, nil
	})
	get("state", func(*http.Request) (any, error) { return s.state(), nil })
	get("runs", func(*http.Request) (any, error) { return s.Runs(), nil })
	get("jobs", func(*http.Request) (any, error) { return s.Jobs(), nil })
	get("scalesets", func(*http.Request) (any, error) { return s.ScaleSets(), nil })
	get("runners", func(*http.Request) (any, error) { return s.Runners(), nil })
	get("deliveries", func(*http.Request) (any, error) { return s.Deliveries(), nil })
	get("requests", func(*http.Request) (any, error) { return s.Requests(), nil })
	get("jobs/{id}", func(r *http.Request) (any, error) {
		if j, ok := s.Job(pathID(r)); ok {
			return j, nil
		}
		return nil, fmt.Errorf("job %d: %w", pathID(r), ErrNotFound)
	})
	get("jobs/{id}/wait", s.controlWaitJob)
	get("wait", s.controlWait)
	mux.HandleFunc("GET "+controlPrefix+"jobs/{id}/logs", func(w http.ResponseWriter, r *http.Request) {
		j, found := s.Job(pathID(r))
		if !found {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, j.Logs) // the client may have gone; there is nobody else to tell
	})
	s.controlActions(post)
	mux.HandleFunc("DELETE "+controlPrefix+"faults", func(w http.ResponseWriter, _ *http.Request) {
		s.ClearFaults()
		reply(w, http.StatusOK, object{})
	})
	return mux
}

// controlActions are the calls that change something.
func (s *Sim) controlActions(post func(path string, v func(r *http.Request) (any, error))) {
	post("installations", func(r *http.Request) (any, error) {
		in, err := strictJSON[Installation](r)
		if err != nil {
			return nil, err
		}
		id, err := s.AddInstallation(in)
		return object{"id": id}, err
	})
	post("installations/{id}/suspend", func(r *http.Request) (any, error) { return object{}, s.Suspend(pathID(r), true) })
	post("installations/{id}/unsuspend", func(r *http.Request) (any, error) { return object{}, s.Suspend(pathID(r), false) })
	post("runs", func(r *http.Request) (any, error) {
		w, err := strictJSON[workflowWire](r)
		if err != nil {
			return nil, err
		}
		return s.QueueRun(w.workflow())
	})
	post("runs/{id}/cancel", func(r *http.Request) (any, error) { return object{}, s.CancelRun(pathID(r)) })
	post("runs/{id}/rerun", func(r *http.Request) (any, error) {
		job, _ := strconv.ParseInt(r.URL.Query().Get("job"), 10, 64)
		return s.Rerun(pathID(r), job)
	})
	post("jobs/{id}/cancel", func(r *http.Request) (any, error) { return object{}, s.CancelJob(pathID(r)) })
	post("jobs/{id}/approve", func(r *http.Request) (any, error) { return object{}, s.Approve(pathID(r)) })
	post("deliveries/{id}/redeliver", func(r *http.Request) (any, error) { return object{}, s.Redeliver(pathID(r)) })
	post("scalesets/end", func(*http.Request) (any, error) {
		s.EndSetSessions()
		return object{}, nil
	})
	post("faults", func(r *http.Request) (any, error) {
		f, err := strictJSON[Fault](r)
		if err != nil {
			return nil, err
		}
		return object{}, s.Inject(f)
	})
	post("webhook", func(r *http.Request) (any, error) {
		in, err := strictJSON[Webhook](r)
		if err != nil {
			return nil, err
		}
		if in.Kind != nil {
			s.SetKindDeliveries(*in.Kind)
		}
		return object{}, s.SetWebhook(in.URL, secret.New(in.Secret))
	})
}

func (s *Sim) slug() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.app.slug
}

func (s *Sim) state() State {
	s.mu.Lock()
	at := s.changes
	s.mu.Unlock()
	return State{Changes: at, Runs: s.Runs(), Jobs: s.Jobs(), Runners: s.Runners(), Deliveries: s.Deliveries(), Requests: s.Requests()}
}

// waitContext ends a long poll in time for its client.
func waitContext(r *http.Request) (context.Context, context.CancelFunc) {
	d, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || d <= 0 || d > maxWait {
		d = maxWait
	}
	return context.WithTimeout(r.Context(), d)
}

// controlWait answers when something has changed after `since`, or with `since` again.
func (s *Sim) controlWait(r *http.Request) (any, error) {
	since, err := strconv.ParseUint(orString(r.URL.Query().Get("since"), "0"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("since: %w", err)
	}
	ctx, cancel := waitContext(r)
	defer cancel()
	at, err := s.Wait(ctx, since)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return object{"changes": at}, nil
}

// controlWaitJob answers when a job has reached a status, or as it is when the time is up.
func (s *Sim) controlWaitJob(r *http.Request) (any, error) {
	ctx, cancel := waitContext(r)
	defer cancel()
	want := orString(r.URL.Query().Get("status"), "completed")
	j, err := s.WaitJob(ctx, pathID(r), func(j Job) bool { return j.Status == want || j.Done() })
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	return j, nil
}

func answerControl(w http.ResponseWriter, r *http.Request, v func(r *http.Request) (any, error)) {
	out, err := v(r)
	switch {
	case err == nil:
		reply(w, http.StatusOK, out)
	case errors.Is(err, ErrNotFound):
		reply(w, http.StatusNotFound, object{"message": err.Error()})
	default:
		reply(w, http.StatusBadRequest, object{"message": err.Error()})
	}
}

func strictJSON[T any](r *http.Request) (v T, err error) {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, bodyLimit))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, fmt.Errorf("read the request: %w", err)
	}
	return v, nil
}

func pathID(r *http.Request) int64 {
	id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64) // 0, which nothing has, if it is no number
	return id
}
