// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/secret"
)

// What keeps GitHub from registering a runner is what a job waits for, and it goes on by
// itself when that is over: a suspended App, an outage, a group that is not there.
func TestTroubleAtGitHub(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	id, err := s.sim.AddInstallation(githubsim.Installation{Account: "pied", Repositories: []string{"piper"}})
	if err != nil {
		t.Fatal(err)
	}
	s.pools += `
  - name: grouped
    labels: [grouped]
    scopes: [pied]
    image: sonoma
    runner_group: Macs
    limits: {surplus: 1s}
`
	c := s.serve()
	token := c.hostToken("mini-1")
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), token), g)
	c.one("state", "online", "hosts")

	// Suspended: nothing is booted for it; resumed: at once.
	suspend := func(on bool) {
		if err := s.sim.Suspend(id, on); err != nil {
			t.Fatal(err)
		}
		s.delivered()
	}
	piper := func(labels ...string) string {
		run, err := s.sim.QueueRun(githubsim.Workflow{Repo: "pied/piper", Jobs: []githubsim.JobSpec{{Name: "x", Labels: labels, Steps: []githubsim.Step{{Run: "true"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		s.delivered()
		return fmt.Sprint(run.JobIDs[0])
	}
	job := piper("grouped")
	c.waiting(job, "refused", `runner group "Macs"`)
	suspend(true)
	c.waiting(job, "installation", "suspended in pied")
	suspend(false)
	c.waiting(job, "refused", "")
	before := s.mints()

	// An outage, in which nothing ends.
	if err := s.sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusBadGateway, Count: -1}); err != nil {
		t.Fatal(err)
	}
	unreachable := fmt.Sprintf("minifleet_github_unreachable{app=\"%d\"} 1", s.sim.AppID())
	eventually(t, "the metrics show the outage", func() bool {
		suspend(true) // each time the list of installations is asked for, or once for several
		suspend(false)
		return strings.Contains(s.scrape(c), unreachable)
	})
	run := s.queue(macLabels())
	s.delivered()
	queued := fmt.Sprint(run.JobIDs[0])
	c.waiting(queued, "github", "cannot be reached since")
	s.sim.ClearFaults()
	c.waiting(queued, "assignment", "")
	if n := s.mints(); n != before+1 {
		t.Errorf("%d registrations for one job", n-before)
	}
	// A call that GitHub had begun to answer before may end the outage for a moment.
	edges := regexp.MustCompile(`msg="GitHub (cannot be reached|is reached again)`).FindAllStringSubmatch(c.log.String(), -1)
	for i, edge := range edges {
		if want := []string{"cannot be reached", "is reached again"}[i%2]; edge[1] != want {
			t.Errorf("the log does not show the edges of the outage one after the other: %q", edges)
		}
	}
	if len(edges) == 0 || len(edges)%2 != 0 {
		t.Errorf("the log does not show both edges: %q", edges)
	}
}

// scrape returns the metrics.
func (s *site) scrape(c *served) string {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, c.admin+"/metrics", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+operatorToken)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// Two Apps send their webhooks here: each counts with its own secret only.
func TestWebhooksOfSeveralApps(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	other, err := githubsim.New(githubsim.Options{AppID: 7777, Kind: true, KeyPool: 1, Timing: githubsim.Timing{DeliveryTimeout: patience}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := other.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo"}}); err != nil {
		t.Fatal(err)
	}
	s.file("app2.pem", other.PrivateKeyPEM().Reveal())
	s.file("webhook2.secret", other.WebhookSecret().Reveal())
	s.secrets += "\n  more_apps:\n    - {app_id: 7777, private_key_file: app2.pem, webhook_secret_file: webhook2.secret}"
	c := s.serve()
	send := func(secret, job string) (status string) {
		t.Helper()
		if err := other.SetWebhook(c.webhook+"/webhook", s.text(secret)); err != nil {
			t.Fatal(err)
		}
		if _, err := other.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{{Name: job, Labels: []string{"nobody"}, Steps: []githubsim.Step{{Run: "true"}}}}}); err != nil {
			t.Fatal(err)
		}
		if err := other.WaitDelivered(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, d := range other.Deliveries() {
			status = fmt.Sprint(d.StatusCode)
		}
		return status
	}
	if got := send("webhook.secret", "forged"); got != "401" {
		t.Errorf("signed with the other App's secret: %s", got)
	}
	if got := send("webhook2.secret", "good"); got != "202" {
		t.Errorf("signed with its own secret: %s", got)
	}
	eventually(t, "the other App's job is known", func() bool { return len(c.list("jobs")) == 1 })
	// This GitHub knows one of them only.
	eventually(t, "each asks for its own list of deliveries", func() bool {
		answers := map[int]bool{}
		for _, r := range s.sim.Requests() {
			if r.Path == "/app/hook/deliveries" {
				answers[r.Status] = true
			}
		}
		return answers[http.StatusOK] && answers[http.StatusUnauthorized]
	})
}

// text is a secret from a file of the site.
func (s *site) text(name string) secret.Text { return secret.New(strings.TrimSpace(s.read(name))) }
