// SPDX-License-Identifier: MIT

package webhook_test

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/webhook"
)

// capture is a store that hands out what it was given.
type capture struct{ in *fleet.Ingest }

func (c capture) Ingest(_ context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	*c.in = in
	return fleet.Ingested{Changed: true}, nil
}

func (capture) KnownInstallation(context.Context, int64) (bool, error) { return true, nil }

// FuzzParse holds whatever a payload may say to the bounds that the store and
// everything after it rely on.
func FuzzParse(f *testing.F) {
	names, err := filepath.Glob("testdata/*.json")
	if err != nil || len(names) == 0 {
		f.Fatal("no fixtures", err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		event := "workflow_job"
		switch base := filepath.Base(name); {
		case strings.HasPrefix(base, "run_"):
			event = "workflow_run"
		case strings.HasPrefix(base, "installation_repositories"):
			event = "installation_repositories"
		case strings.HasPrefix(base, "installation_"):
			event = "installation"
		case strings.HasPrefix(base, "ping"):
			event = "ping"
		}
		f.Add(event, "application/json", b)
		f.Add(event, "application/x-www-form-urlencoded", append([]byte("payload="), b...))
	}
	var in fleet.Ingest
	h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: capture{&in}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, event, contentType string, payload []byte) {
		in = fleet.Ingest{}
		out, err := h.Take(t.Context(), webhook.Envelope{
			GUID: guid, Event: event, TargetType: "integration", TargetID: appID, ContentType: contentType, Payload: payload,
		})
		if err != nil {
			return // the event is no event
		}
		if out.Status != in.Delivery.Status || out.Reason != in.Delivery.Reason || (out.Reason == "") != (out.Status == fleet.DeliveryProcessed) {
			t.Errorf("outcome %+v of delivery %s %q", out, in.Delivery.Status, in.Delivery.Reason)
		}
		plain(t, in.Delivery.Action, in.Delivery.Reason, in.Delivery.Repository)
		if out.Status != fleet.DeliveryProcessed && (in.Job != nil || in.Run != nil || in.Installation != nil) {
			t.Error("news of a delivery that is not processed")
		}
		if in.Job != nil {
			j := in.Job.Job
			if fleet.JobUnknown.Next(in.Job.Event) == fleet.JobUnknown || j.ID <= 0 || j.RunID <= 0 || j.RunAttempt < 1 || j.InstallationID <= 0 || len(j.Labels) > 100 {
				t.Errorf("job %+v", in.Job)
			}
			if scope, err := fleet.ParseScope(j.Repository()); err != nil || scope.Repo == "" {
				t.Errorf("repository %q", j.Repository())
			}
			plain(t, append(j.Labels, j.Name, j.Workflow, j.RunnerName, j.Conclusion, j.URL)...)
		}
		if in.Run != nil {
			r := in.Run
			if r.ID <= 0 || r.Attempt < 1 || (!r.Fork && !strings.EqualFold(r.HeadRepository, r.Repository)) {
				t.Errorf("run %+v", r)
			}
			plain(t, r.Event, r.HeadRepository, r.Actor, r.Status, r.Conclusion)
		}
		if i := in.Installation; i != nil {
			if i.ID <= 0 || i.Account == "" {
				t.Errorf("installation %+v", i)
			}
			plain(t, i.Account)
		}
	})
}

func plain(t *testing.T, list ...string) {
	t.Helper()
	for _, s := range list {
		if !utf8.ValidString(s) || strings.ContainsAny(s, "\x00\x1b\n\r") || len(s) > 2048 {
			t.Errorf("string %q is not fit to be stored", s)
		}
	}
}

func BenchmarkHandler(b *testing.B) {
	var in fleet.Ingest
	h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: capture{&in}})
	if err != nil {
		b.Fatal(err)
	}
	router := chi.NewRouter()
	h.Routes(router)
	body := fixture(b, "job_in_progress")
	header := request(b, "/webhook", "workflow_job", guid, body).Header
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	for b.Loop() {
		req := httptest.NewRequestWithContext(b.Context(), http.MethodPost, "/webhook", bytes.NewReader(body))
		req.Header = header
		w := httptest.NewRecorder()
		router.ServeHTTP(w, req)
		if w.Code != http.StatusAccepted {
			b.Fatal(w.Code, w.Body)
		}
	}
}
