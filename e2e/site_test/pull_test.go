// SPDX-License-Identifier: MIT

package site_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Nothing can be delivered to the controller, and it has no webhook secret: it reads all
// deliveries from GitHub, and jobs run from their start to their end.
func TestNoInboundEndpoint(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "91")
	s.config = strings.NewReplacer(
		`webhook: {address: "WEBHOOK"}`+"\n", "", "webhook_secret_file: webhook.secret", "deliveries: pull",
		"timing: {", "timing: {pull: 1s, reconcile: 1h, ",
	).Replace(s.config)
	if err := s.sim.SetWebhook(s.ctx, githubsim.Webhook{URL: "http://127.0.0.1:1/webhook"}); err != nil {
		t.Fatal(err)
	}
	text := strings.NewReplacer("AGENTS", "127.0.0.1:0", "ADMIN", "127.0.0.1:0").Replace(s.config)
	controller := s.launch("minifleet", "serve", "--config", s.file("controller.yaml", text))
	s.agents, s.admin = controller.announced("agents"), controller.announced("admin")
	agent := s.startAgent("mini-1")
	for _, run := range []string{"true", "exit 3"} {
		id := s.queue(githubsim.JobSpec{Name: "quiet", Steps: []githubsim.Step{{Run: run}}})[0]
		want := map[string]string{"true": "success"}[run]
		if j := s.untilJob(id, "it ends", githubsim.Job.Done); want != "" && j.Conclusion != want {
			t.Errorf("it ended with %s %s", j.Conclusion, j.Reason)
		}
	}
	eventually(t, "the books say so", func() bool { return len(s.list("jobs?state=completed")) == 2 })
	s.nothingLeft()
	deliveries, err := s.sim.Deliveries(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(deliveries, func(d githubsim.Delivery) bool { return d.StatusCode != http.StatusBadGateway }) {
		t.Error("something was delivered")
	}
	agent.stop()
	controller.stop()
}
