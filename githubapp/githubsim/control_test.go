// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// serve runs a whole simulated GitHub as its own program would, from settings
// that have travelled as JSON.
func serve(t *testing.T, settings githubsim.Settings) githubsim.Control {
	t.Helper()
	var wire bytes.Buffer
	if err := settings.Encode(&wire); err != nil {
		t.Fatal(err)
	}
	read, err := githubsim.ReadSettings(&wire)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		ended <- githubsim.Serve(ctx, read, slog.New(slog.DiscardHandler), func(url string) error {
			ready <- url
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	select {
	case url := <-ready:
		return githubsim.Control{BaseURL: url, Client: &http.Client{Transport: transport(t)}}
	case err := <-ended:
		ended <- err
		t.Fatalf("serve ended: %v", err)
		return githubsim.Control{}
	}
}

func TestControl(t *testing.T) {
	hook, url := newReceiver(t)
	ctx := t.Context()
	c := serve(t, githubsim.Settings{
		Kind: true, AppID: 7, PrivateKey: keyPEM(appKey()), WebhookSecret: secret.New("shared"), KeyPool: 1,
		Installations: []githubsim.Installation{{Account: "octo", Repositories: []string{"demo"}}},
	})
	app, err := c.App(ctx)
	if err != nil || app.ID != 7 || app.WebhookSecret != "shared" || app.PrivateKeyPEM != keyPEM(appKey()).Reveal() {
		t.Fatalf("app is %+v, %v", app, err)
	}
	if err := c.SetWebhook(ctx, githubsim.Webhook{URL: url, Kind: new(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.AddInstallation(ctx, githubsim.Installation{Account: "late", Repositories: []string{"x"}}); err != nil {
		t.Fatal(err)
	}
	since, err := c.Wait(ctx, 0, time.Second)
	if err != nil || since == 0 {
		t.Fatalf("wait: %d, %v", since, err)
	}
	run, err := c.QueueRun(ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{
		{Name: "build", Labels: []string{"vm"}, Secrets: map[string]secret.Text{"KEY": secret.New("s3cret")}, Steps: []githubsim.Step{{Run: "true"}}},
		{Name: "gated", Labels: []string{"vm"}, Gated: true},
	}})
	if err != nil || len(run.JobIDs) != 2 {
		t.Fatalf("run is %+v, %v", run, err)
	}
	if _, err := c.Wait(ctx, since, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := c.Approve(ctx, run.JobIDs[1]); err != nil {
		t.Fatal(err)
	}
	if err := c.CancelJob(ctx, run.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	if j, err := c.WaitJob(ctx, run.JobIDs[0], "completed"); err != nil || j.Conclusion != "cancelled" {
		t.Errorf("job is %+v, %v", j, err)
	}
	if err := c.CancelRun(ctx, run.ID); err != nil {
		t.Fatal(err)
	}
	again, err := c.Rerun(ctx, run.ID, 0)
	if err != nil || again.Attempt != 2 {
		t.Errorf("rerun is %+v, %v", again, err)
	}
	state, err := c.State(ctx)
	if err != nil || len(state.Runs) != 1 || len(state.Jobs) != 4 || state.Changes == 0 {
		t.Errorf("state is %+v, %v", state, err)
	}
	eventually(t, c, func() bool { return len(hook.all()) >= 10 })
	deliveries, err := c.Deliveries(ctx)
	if err != nil || len(deliveries) == 0 {
		t.Fatalf("deliveries are %v, %v", deliveries, err)
	}
	if err := c.Redeliver(ctx, deliveries[0].ID); err != nil {
		t.Error(err)
	}
}

// eventually waits, change by change, for what is to be true after one of them.
func eventually(t *testing.T, c githubsim.Control, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	at, err := uint64(0), error(nil)
	for !ok() {
		if at, err = c.Wait(ctx, at, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
}

func TestControlFaultsAndErrors(t *testing.T) {
	ctx := t.Context()
	c := serve(t, githubsim.Settings{PrivateKey: keyPEM(appKey()), KeyPool: 1})
	if err := c.Inject(ctx, githubsim.Fault{Kind: githubsim.FaultStatus, Status: 503, Count: -1}); err != nil {
		t.Fatal(err)
	}
	if status := get(t, c, "/meta"); status != http.StatusServiceUnavailable {
		t.Errorf("status %d", status)
	}
	if err := c.ClearFaults(ctx); err != nil {
		t.Fatal(err)
	}
	if status := get(t, c, "/meta"); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	requests, err := c.Requests(ctx)
	if err != nil || len(requests) != 2 || requests[0].Fault == "" || requests[1].Fault != "" {
		t.Errorf("requests are %+v, %v", requests, err)
	}
	for name, err := range map[string]error{
		"fault that cannot travel": c.Inject(ctx, githubsim.Fault{Kind: githubsim.FaultStatus, Match: func(*http.Request) bool { return true }}),
		"unknown fault":            c.Inject(ctx, githubsim.Fault{Kind: "gremlin"}),
		"unknown repository":       second(c.QueueRun(ctx, githubsim.Workflow{Repo: "octo/nope", Jobs: []githubsim.JobSpec{{Name: "j"}}})),
		"webhook that is no URL":   c.SetWebhook(ctx, githubsim.Webhook{URL: "nonsense"}),
	} {
		if err == nil || errors.Is(err, githubsim.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, err := range map[string]error{
		"approve": c.Approve(ctx, 1), "cancel": c.CancelJob(ctx, 1), "cancel run": c.CancelRun(ctx, 1), "job": second(c.Job(ctx, 1)), "wait": second(c.WaitJob(ctx, 1, "completed")),
	} {
		if !errors.Is(err, githubsim.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func get(t *testing.T, c githubsim.Control, path string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "GET", c.BaseURL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestOptionsThatCannotBe(t *testing.T) {
	for name, opt := range map[string]githubsim.Options{
		"unknown flow":        {Flow: "v3"},
		"public address":      {Listen: "0.0.0.0:0"},
		"address without IP":  {Listen: ":8080"},
		"webhook without URL": {WebhookURL: "localhost:8080"},
		"fault rate over 1":   {FaultRate: 2},
		"bad fault":           {Faults: []githubsim.Fault{{}}},
		"key that is none":    {PrivateKey: secret.New("not a key")},
	} {
		if sim, err := githubsim.New(opt); err == nil {
			t.Errorf("%s: no error", name)
			sim.Close()
		} else if strings.Contains(err.Error(), "not a key") {
			t.Errorf("%s: the error shows the key", name)
		}
	}
	if _, err := githubsim.ReadSettings(strings.NewReader(`{"lissten":"127.0.0.1:0"}`)); err == nil {
		t.Error("took a setting that is misspelt")
	}
}

func TestCloseEndsWaiting(t *testing.T) {
	sim, err := githubsim.New(githubsim.Options{PrivateKey: keyPEM(appKey()), KeyPool: 1})
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := sim.Wait(t.Context(), 1<<60)
		waited <- err
	}()
	if err := sim.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, githubsim.ErrClosed) {
		t.Errorf("wait: %v", err)
	}
	if sim.Start() == nil {
		t.Error("started after its end")
	}
}
