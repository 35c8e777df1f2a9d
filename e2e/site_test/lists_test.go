// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Deliveries that GitHub never sends: the books and the slots come right all the same,
// though no look at GitHub's lists is due for an hour.
func TestDeliveriesNeverSent(t *testing.T) {
	t.Parallel()
	for name, lost := range map[string][]string{
		"completed":                 {"workflow_job.completed"},
		"in_progress and completed": {"workflow_job.in_progress", "workflow_job.completed"},
	} {
		t.Run(name, func(t *testing.T) {
			turn(t)
			s := newSite(t, "--seed", "43")
			s.config = strings.Replace(s.config, "timing: {", "timing: {reconcile: 1h, ", 1)
			controller := s.startController()
			agent := s.startAgent("mini-1")
			for _, path := range lost {
				if err := s.sim.Inject(s.ctx, githubsim.Fault{Kind: githubsim.DeliveryLost, Path: path, Count: -1}); err != nil {
					t.Fatal(err)
				}
			}
			id := s.queue(githubsim.JobSpec{Name: "silent", Steps: []githubsim.Step{{Run: "echo done"}}})[0]
			s.untilJob(id, "it ends", githubsim.Job.Done)
			eventually(t, "the books say so", func() bool { return len(s.list("jobs?state=completed")) == 1 })
			s.nothingLeft()
			deliveries, err := s.sim.Deliveries(s.ctx)
			if err != nil {
				t.Fatal(err)
			}
			if slices.ContainsFunc(deliveries, func(d githubsim.Delivery) bool { return d.JobID == id && d.Action == "completed" }) {
				t.Error("GitHub has told that the job is completed: nothing was tested")
			}
			agent.stop()
			controller.stop()
		})
	}
}

// A registration with this site's name and without a VM is deleted; one of another
// site is left alone.
func TestLeftOverRegistration(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "44")
	s.config = strings.Replace(s.config, "timing: {host_deadline: 20s", "timing: {reconcile: 1s, absence: 2s, host_deadline: 10s", 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	id := s.queue(githubsim.JobSpec{Name: "first", Steps: []githubsim.Step{{Run: "echo done"}}})[0]
	j := s.untilJob(id, "it ends", githubsim.Job.Done)
	site, _, _ := strings.Cut(j.RunnerName, "-")
	s.nothingLeft()

	register := s.registrar()
	ours, theirs := register(site+"-demo-abcdefghijklmnop"), register("another7-demo-abcdefghijklmnop")
	removed := func(name string) bool {
		t.Helper()
		all, err := s.sim.Runners(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(all, func(r githubsim.Runner) bool { return r.Name == name })
		if i < 0 {
			t.Fatalf("GitHub does not know %s", name)
		}
		return !all[i].RemovedAt.IsZero()
	}
	eventually(t, "the one of this site is deleted", func() bool { return removed(ours) })
	looks := func() int {
		requests, err := s.sim.Requests(s.ctx)
		if err != nil {
			t.Fatal(err)
		}
		return len(slices.DeleteFunc(requests, func(r githubsim.Request) bool {
			return r.Method != "GET" || !strings.HasSuffix(r.Path, "/actions/runners")
		}))
	}
	before := looks()
	eventually(t, "some more sweeps", func() bool { return looks() >= before+5 })
	if removed(theirs) {
		t.Errorf("%s, which is another site's, was deleted", theirs)
	}
	controller.await("it says what it deleted", func(output string) bool {
		return strings.Contains(output, fmt.Sprintf("registration=%s", ours)) && !strings.Contains(output, theirs)
	})
	agent.stop()
	controller.stop()
}

// registrar returns a function by which the App registers a runner that nobody starts.
func (s *site) registrar() func(name string) string {
	s.t.Helper()
	app, err := s.sim.App(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(app.PrivateKeyPEM))
	if err != nil {
		s.t.Fatal(err)
	}
	now := time.Now()
	identity, err := jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.MapClaims{
		"iss": fmt.Sprint(app.ID), "iat": now.Add(-time.Minute).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": "a test",
	}).SignedString(key)
	if err != nil {
		s.t.Fatal(err)
	}
	ask := func(method, path, token string, in any, out any) {
		s.t.Helper()
		body, err := json.Marshal(in)
		if err != nil {
			s.t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(s.ctx, method, s.sim.BaseURL+path, bytes.NewReader(body))
		if err != nil {
			s.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			s.t.Fatal(err)
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(out); err != nil || res.StatusCode/100 != 2 {
			s.t.Fatalf("%s %s: %s %v", method, path, res.Status, err)
		}
	}
	var installation struct {
		ID int64 `json:"id"`
	}
	ask(http.MethodGet, "/repos/octo/demo/installation", identity, nil, &installation)
	var granted struct {
		Token string `json:"token"`
	}
	ask(http.MethodPost, fmt.Sprintf("/app/installations/%d/access_tokens", installation.ID), identity, map[string]any{}, &granted)
	return func(name string) string {
		s.t.Helper()
		var made struct {
			Runner struct {
				Name string `json:"name"`
			} `json:"runner"`
		}
		ask(http.MethodPost, "/repos/octo/demo/actions/runners/generate-jitconfig", granted.Token,
			map[string]any{"name": name, "runner_group_id": 1, "labels": []string{"elsewhere"}}, &made)
		return made.Runner.Name
	}
}
