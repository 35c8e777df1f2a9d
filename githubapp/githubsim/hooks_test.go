// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

func TestDeliveriesAreSigned(t *testing.T) {
	hook, url := newReceiver(t)
	sim, octo := newSim(t, githubsim.Options{Kind: true, WebhookURL: url, WebhookSecret: secret.New("shared")})
	queue(t, sim, githubsim.JobSpec{})
	delivered(t, sim)
	events := map[string]bool{}
	for _, d := range hook.all() {
		for name, value := range map[string]string{
			"Content-Type": "application/json", "X-GitHub-Hook-Installation-Target-Type": "integration", "X-GitHub-Hook-Installation-Target-ID": "4242",
		} {
			if d.header.Get(name) != value {
				t.Errorf("%s is %q", name, d.header.Get(name))
			}
		}
		if ua := d.header.Get("User-Agent"); !strings.HasPrefix(ua, "GitHub-Hookshot/") {
			t.Errorf("User-Agent is %q", ua)
		}
		if d.header.Get("X-GitHub-Hook-ID") == "" || len(d.header.Get("X-GitHub-Delivery")) != 36 {
			t.Errorf("headers are %v", d.header)
		}
		for _, name := range []string{"X-Hub-Signature-256", "X-Hub-Signature"} {
			if err := github.ValidateSignature(d.header.Get(name), d.body, []byte("shared")); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if github.ValidateSignature(d.header.Get(name), d.body, []byte("other")) == nil {
				t.Errorf("%s is good for any secret", name)
			}
		}
		event := d.header.Get("X-GitHub-Event")
		if _, err := github.ParseWebHook(event, d.body); err != nil {
			t.Errorf("%s: %v", event, err)
		}
		events[event] = true
		if event == "workflow_job" {
			var job github.WorkflowJobEvent
			if err := json.Unmarshal(d.body, &job); err != nil {
				t.Fatal(err)
			}
			if job.GetInstallation().GetID() != octo || job.GetWorkflowJob().GetRunnerID() != 0 || job.GetWorkflowJob().GetID() == job.GetWorkflowJob().GetRunID() {
				t.Errorf("event is %v", job)
			}
			if j := job.GetWorkflowJob(); !j.GetStartedAt().Equal(*j.CreatedAt) {
				t.Error("a queued job has started_at == created_at")
			}
		}
	}
	for _, event := range []string{"installation", "workflow_run", "workflow_job"} {
		if !events[event] {
			t.Errorf("no %s among %v", event, events)
		}
	}
}

func TestKindDeliveriesComeInOrderAndOnce(t *testing.T) {
	hook, url := newReceiver(t)
	sim, _ := newSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	var want []string
	for range 50 {
		want = append(want, fmt.Sprint(queue(t, sim, githubsim.JobSpec{}).JobIDs[0]))
	}
	delivered(t, sim)
	var got []string
	for _, d := range hook.all() {
		var p struct {
			Job *struct {
				ID int64 `json:"id"`
			} `json:"workflow_job"`
		}
		if err := json.Unmarshal(d.body, &p); err != nil {
			t.Fatal(err)
		}
		if p.Job != nil {
			got = append(got, fmt.Sprint(p.Job.ID))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestUnkindDeliveriesComeLateRepeatedAndInDisorder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var arrived []string
		at := make(chan string, 10_000)
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			at <- r.Header.Get("X-GitHub-Delivery")
			return &http.Response{StatusCode: http.StatusOK, Body: io.NopCloser(bytes.NewReader(nil)), Header: http.Header{}}, nil
		})
		sim, _ := newSim(t, githubsim.Options{WebhookURL: "http://receiver.invalid/", WebhookClient: &http.Client{Transport: rt}})
		start := time.Now()
		for range 200 {
			queue(t, sim, githubsim.JobSpec{})
		}
		all := delivered(t, sim)
		for len(at) > 0 {
			arrived = append(arrived, <-at)
		}
		repeats, guids, last := 0, map[string]int{}, time.Time{}
		for _, d := range all {
			guids[d.GUID]++
			if d.Repeat {
				repeats++
			}
			if d.DeliveredAt.After(last) {
				last = d.DeliveredAt
			}
		}
		if len(arrived) != len(all) || len(guids) != len(all)-repeats {
			t.Errorf("%d arrived, %d kept, %d repeated, %d GUIDs", len(arrived), len(all), repeats, len(guids))
		}
		if repeats < 4 || repeats > 60 {
			t.Errorf("%d of %d deliveries repeated; about one in twenty is meant", repeats, len(all))
		}
		if d := last.Sub(start); d < 100*time.Millisecond || d > 200*time.Millisecond {
			t.Errorf("the last came after %s", d)
		}
		jobs := []int64{}
		for _, d := range all {
			if d.Event == "workflow_job" && !d.Repeat {
				jobs = append(jobs, d.JobID)
			}
		}
		if slices.IsSorted(jobs) {
			t.Error("all came in order")
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestRedelivery(t *testing.T) {
	hook, url := newReceiver(t)
	sim, _ := startSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	hook.answerWith(http.StatusInternalServerError)
	delivered(t, sim)
	queue(t, sim, githubsim.JobSpec{})
	delivered(t, sim)
	hook.answerWith(http.StatusOK)
	app := asApp(t, sim)
	req, err := app.NewRequest("GET", "app/hook/deliveries?status=failure&per_page=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	var failed []*github.HookDelivery
	resp, err := app.Do(t.Context(), req, &failed)
	if err != nil || len(failed) != 1 || resp.Cursor == "" {
		t.Fatalf("failed deliveries: %v, cursor %q, %v", failed, resp.Cursor, err)
	}
	if failed[0].GetEvent() != "workflow_job" || failed[0].GetAction() != "queued" || failed[0].GetStatusCode() != 500 {
		t.Errorf("the newest failure is %v", failed[0])
	}
	full, _, err := app.Apps.GetHookDelivery(t.Context(), failed[0].GetID())
	if err != nil {
		t.Fatal(err)
	}
	if payload, err := full.ParseRequestPayload(); err != nil || payload.(*github.WorkflowJobEvent).GetAction() != "queued" {
		t.Errorf("payload: %v, %v", payload, err)
	}
	if full.Request.Headers["X-GitHub-Delivery"] != failed[0].GetGUID() {
		t.Errorf("headers are %v", full.Request.Headers)
	}
	_, _, err = app.Apps.RedeliverHookDelivery(t.Context(), failed[0].GetID())
	if _, ok := errors.AsType[*github.AcceptedError](err); !ok {
		t.Errorf("redeliver: %v", err)
	}
	all := delivered(t, sim)
	last := all[len(all)-1]
	if !last.Redelivery || last.GUID != failed[0].GetGUID() || last.StatusCode != 200 {
		t.Errorf("the redelivery is %+v", last)
	}
	got := hook.all()
	if string(got[len(got)-1].body) != last.Payload || got[len(got)-1].header.Get("X-GitHub-Delivery") != last.GUID {
		t.Error("the redelivery differs from the delivery")
	}
	if _, _, err := app.Apps.RedeliverHookDelivery(t.Context(), 1); err == nil {
		t.Error("redelivered what never was")
	}
}

func TestListDeliveriesByCursor(t *testing.T) {
	_, url := newReceiver(t)
	sim, _ := startSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	for range 10 {
		queue(t, sim, githubsim.JobSpec{})
	}
	want := len(delivered(t, sim))
	app := asApp(t, sim)
	seen := map[int64]bool{}
	opt := &github.ListCursorOptions{PerPage: 7}
	for {
		page, resp, err := app.Apps.ListHookDeliveries(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range page {
			seen[d.GetID()] = true
		}
		if opt.Cursor = resp.Cursor; opt.Cursor == "" {
			break
		}
	}
	if len(seen) != want {
		t.Errorf("%d deliveries listed, want %d", len(seen), want)
	}
}

func TestHookConfig(t *testing.T) {
	hook, url := newReceiver(t)
	sim, _ := startSim(t, githubsim.Options{Kind: true})
	app := asApp(t, sim)
	if _, _, err := app.Apps.UpdateHookConfig(t.Context(), &github.HookConfig{URL: &url, Secret: github.String("new")}); err != nil {
		t.Fatal(err)
	}
	delivered(t, sim)
	got := hook.all()
	if len(got) != 1 || got[0].header.Get("X-GitHub-Event") != "ping" {
		t.Fatalf("received %v", got)
	}
	if err := github.ValidateSignature(got[0].header.Get("X-Hub-Signature-256"), got[0].body, []byte("new")); err != nil {
		t.Error(err)
	}
	config, _, err := app.Apps.GetHookConfig(t.Context())
	if err != nil || config.GetURL() != url || config.GetSecret() == "new" {
		t.Errorf("config is %v, %v", config, err)
	}
	if _, _, err := app.Apps.UpdateHookConfig(t.Context(), &github.HookConfig{URL: github.String("not a url")}); err == nil {
		t.Error("took a URL that is none")
	}
}

func TestSlowAndAbsentReceivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			if r.URL.Host == "absent.invalid" {
				return nil, errors.New("connection refused")
			}
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		sim, _ := newSim(t, githubsim.Options{Kind: true, WebhookClient: &http.Client{Transport: rt}})
		for host, want := range map[string]int{"slow.invalid": http.StatusGatewayTimeout, "absent.invalid": http.StatusBadGateway} {
			start := time.Now()
			if err := sim.SetWebhook("http://"+host, secret.Text{}); err != nil {
				t.Fatal(err)
			}
			all := delivered(t, sim)
			if last := all[len(all)-1]; last.StatusCode != want {
				t.Errorf("%s: %+v", host, last)
			}
			if d := time.Since(start); host == "slow.invalid" && d != 10*time.Second {
				t.Errorf("gave up after %s", d)
			}
		}
	})
}

func TestDeliveryFaults(t *testing.T) {
	hook, url := newReceiver(t)
	sim, _ := newSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	for _, f := range []githubsim.Fault{
		{Kind: githubsim.DeliveryLost, Path: "workflow_job.queued"},
		{Kind: githubsim.DeliveryFailed, Path: "workflow_run", Status: 503},
	} {
		if err := sim.Inject(f); err != nil {
			t.Fatal(err)
		}
	}
	run := queue(t, sim, githubsim.JobSpec{}, githubsim.JobSpec{})
	var jobs []int64
	for _, d := range delivered(t, sim) {
		if d.Event == "workflow_job" {
			jobs = append(jobs, d.JobID)
		}
		if d.Event == "workflow_run" && d.StatusCode != 503 {
			t.Errorf("run event is %+v", d)
		}
	}
	if !slices.Equal(jobs, run.JobIDs[1:]) {
		t.Errorf("job events of %v, want of %v alone", jobs, run.JobIDs[1:])
	}
	for _, d := range hook.all() {
		if d.header.Get("X-GitHub-Event") == "workflow_run" {
			t.Error("the failed delivery arrived")
		}
	}
}

func TestNoDeliveriesForWhatIsNotInstalled(t *testing.T) {
	_, url := newReceiver(t)
	sim, octo := newSim(t, githubsim.Options{Kind: true, WebhookURL: url})
	if err := sim.RemoveRepositories(octo, "other"); err != nil {
		t.Fatal(err)
	}
	if _, err := sim.QueueRun(githubsim.Workflow{Repo: "octo/other", Jobs: []githubsim.JobSpec{{Name: "j", Labels: []string{"vm"}}}}); err != nil {
		t.Fatal(err)
	}
	if err := sim.Suspend(octo, true); err != nil {
		t.Fatal(err)
	}
	queue(t, sim, githubsim.JobSpec{})
	var got []string
	for _, d := range delivered(t, sim) {
		got = append(got, d.Event+"."+d.Action)
	}
	if want := []string{"installation.created", "installation_repositories.removed", "installation.suspend"}; !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
}
