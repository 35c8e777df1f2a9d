// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Ghosts of the past: what GitHub has been seen to do to runner controllers, one after the
// other on one site of the real programs, each by the name under which it was reported. What
// takes GitHub minutes is tested where time is virtual.
func TestGhostsOfThePast(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "71")
	s.config = strings.Replace(s.config, "timing: {", "timing: {reconcile: 2s, absence: 3s, ", 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	for _, ghost := range []struct {
		name string
		run  func(*site)
	}{
		{"a job behind a gate is no demand until it is approved (runs-on#539)", gated},
		{"failed jobs are run again (actions-runner-controller#4315)", runAgain},
		{"cancelled before any runner had it (actions-runner-controller PR 2520)", cancelledEarly},
		{"skipped without ever having been queued (actions-runner-controller#836)", skipped},
		{"the name of a runner is taken: 409 (ubicloud#692)", nameTaken},
		{"registered, and answered with 502 (runs-on#30)", registeredAndFailed},
		{"the runner group refuses: 403", groupRefuses},
		{"429 with Retry-After", slowDown},
		{"an outage while a job runs (actions-runner#4076)", outage},
		{"no webhook ever comes (ubicloud#1042)", webhooksLost},
		{"told in the wrong order, late and twice", disorder},
		{"a delivery for an installation that nobody knows (runs-on#509)", foreign},
		{"queued while the installation was suspended", suspended},
		{"a burst of a matrix takes each other's runners (tuist#11862)", burst},
	} {
		t.Run(ghost.name, func(t *testing.T) {
			was := s.t
			s.t = t
			defer func() { s.t = was }()
			ghost.run(s)
			if err := s.sim.ClearFaults(s.ctx); err != nil {
				t.Fatal(err)
			}
			s.nothingLeft()
		})
	}
	agent.stop()
	controller.stop()
}

func short(name string) githubsim.JobSpec {
	return githubsim.JobSpec{Name: name, Steps: []githubsim.Step{{Run: "echo done"}}}
}

func (s *site) inject(f githubsim.Fault) {
	s.t.Helper()
	if err := s.sim.Inject(s.ctx, f); err != nil {
		s.t.Fatal(err)
	}
}

// ends waits until the jobs have ended at GitHub and in the books, as they should.
func (s *site) ends(conclusion string, ids ...int64) {
	s.t.Helper()
	for _, id := range ids {
		if j := s.untilEnd(id, "it ends"); j.Conclusion != conclusion {
			s.t.Errorf("job %s ended with %s, want %s", j.Name, j.Conclusion, conclusion)
		}
	}
	eventually(s.t, "the books say so", func() bool {
		over := s.list("jobs?state=completed&limit=1000")
		return !slices.ContainsFunc(ids, func(id int64) bool {
			return !slices.ContainsFunc(over, func(r row) bool { return s.number(r.ID) == id })
		})
	})
}

// number is a job's id in a listing.
func (s *site) number(id any) int64 {
	s.t.Helper()
	n, ok := id.(float64)
	if !ok {
		s.t.Fatalf("the id of a job is %v", id)
	}
	return int64(n)
}

// explained waits until a job waits for a reason that contains the words.
func (s *site) explained(id int64, words string) {
	s.t.Helper()
	var said string
	eventually(s.t, "it is explained by "+words, func() bool {
		out, err := s.operator("get", "explain", fmt.Sprint(id)).CombinedOutput()
		said = string(out)
		return err == nil && strings.Contains(said, words)
	})
}

func gated(s *site) {
	j := short("gated")
	j.Gated = true
	id := s.queue(j)[0]
	eventually(s.t, "it is known", func() bool { return len(s.list("jobs?state=waiting")) == 1 })
	s.ends("success", s.queue(short("another"))...)
	if rows := s.list("runners?all=true&limit=1000"); len(rows) != 1 {
		s.t.Errorf("%d runners were made while it waited for approval, want that of the other job alone", len(rows))
	}
	if err := s.sim.Approve(s.ctx, id); err != nil {
		s.t.Fatal(err)
	}
	s.ends("success", id)
}

func runAgain(s *site) {
	ids := s.queue(short("good"), githubsim.JobSpec{Name: "bad", Steps: []githubsim.Step{{Run: "exit 3"}}})
	s.ends("success", ids[0])
	s.ends("failure", ids[1])
	again, err := s.sim.Rerun(s.ctx, s.job(ids[0]).RunID, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, id := range again.JobIDs {
		if !slices.Contains(ids, id) {
			s.untilEnd(id, "the second attempt ends")
		}
	}
}

func cancelledEarly(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.FaultDelay, Delay: 2 * time.Second, Method: http.MethodPost, Path: "/generate-jitconfig"})
	id := s.queue(short("cancelled"))[0]
	if err := s.sim.CancelJob(s.ctx, id); err != nil {
		s.t.Fatal(err)
	}
	s.ends("cancelled", id)
}

func skipped(s *site) {
	j := short("skipped")
	j.Skipped = true
	ids := s.queue(j, short("not skipped"))
	s.ends("success", ids[1])
}

func nameTaken(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusConflict, Method: http.MethodPost, Path: "/generate-jitconfig", Count: 2})
	s.ends("success", s.queue(short("renamed"))...)
}

func registeredAndFailed(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.FaultTimeoutAfterSuccess, Status: http.StatusBadGateway, Method: http.MethodPost, Path: "/generate-jitconfig"})
	s.ends("success", s.queue(short("twice"))...)
	all, err := s.sim.Runners(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	names := map[string]bool{}
	for _, r := range all {
		if names[r.Name] {
			s.t.Errorf("the name %s was asked for twice", r.Name)
		}
		names[r.Name] = true
	}
}

func groupRefuses(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusForbidden, Method: http.MethodPost, Path: "/generate-jitconfig", Count: -1})
	id := s.queue(short("refused"))[0]
	s.explained(id, "GitHub has refused pool demo a runner in octo/demo")
	if err := s.sim.ClearFaults(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	s.ends("success", id)
}

func slowDown(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: 3 * time.Second, Method: http.MethodPost, Path: "/generate-jitconfig"})
	s.ends("success", s.queue(short("patient"))...)
	requests, err := s.sim.Requests(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	var refused time.Time
	for _, r := range requests {
		switch {
		case !strings.HasSuffix(r.Path, "/generate-jitconfig"):
		case r.Status == http.StatusTooManyRequests:
			refused = r.At
		case !refused.IsZero() && r.At.Sub(refused) < 3*time.Second:
			s.t.Errorf("asked again after %s, and GitHub had said 3s", r.At.Sub(refused))
		}
	}
	if refused.IsZero() {
		s.t.Error("GitHub has refused nothing: nothing was tested")
	}
}

func outage(s *site) {
	const ticks = 20
	running := s.queue(ticking("running", ticks))[0]
	s.untilJob(running, "it ticks", func(j githubsim.Job) bool { return strings.Contains(strings.Join(j.Feed, "\n"), "tick 1.") })
	s.inject(githubsim.Fault{Kind: githubsim.FaultStatus, Status: http.StatusServiceUnavailable, Path: "/repos/", Count: -1})
	waiting := s.queue(short("meanwhile"))[0]
	if j := s.untilJob(running, "it ends in the outage", githubsim.Job.Done); j.Conclusion != "success" {
		s.t.Errorf("the job that ran ended with %s", j.Conclusion)
	}
	complete(s.t, s.job(running), ticks)
	if err := s.sim.ClearFaults(s.ctx); err != nil {
		s.t.Fatal(err)
	}
	s.ends("success", running, waiting)
}

func webhooksLost(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Count: -1})
	ids := s.queue(short("unheard-of"))
	for _, id := range ids {
		s.untilJob(id, "it is found and served", githubsim.Job.Done)
	}
	s.ends("success", ids...)
}

func disorder(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLate, Path: "workflow_job.queued", Delay: 3 * time.Second, Count: 2})
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLate, Path: "workflow_job.in_progress", Delay: 4 * time.Second, Count: 2})
	s.ends("success", s.queue(short("first"), short("second"))...)
}

func foreign(s *site) {
	app, err := s.sim.App(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	body, err := json.Marshal(map[string]any{
		"action": "queued", "installation": map[string]any{"id": 666},
		"repository":   map[string]any{"full_name": "octo/demo", "name": "demo", "owner": map[string]any{"login": "octo"}},
		"workflow_job": map[string]any{"id": 987654321, "run_id": 1, "status": "queued", "name": "foreign", "labels": []string{"self-hosted", "demo"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	mac := hmac.New(sha256.New, []byte(app.WebhookSecret))
	mac.Write(body)
	req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.webhook+"/webhook", bytes.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "X-GitHub-Event": "workflow_job", "X-GitHub-Delivery": "11111111-2222-3333-4444-555555555555",
		"X-GitHub-Hook-Installation-Target-Type": "integration", "X-GitHub-Hook-Installation-Target-ID": fmt.Sprint(app.ID),
		"X-Hub-Signature-256": "sha256=" + hex.EncodeToString(mac.Sum(nil)),
	} {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusAccepted {
		s.t.Errorf("an authentic delivery is answered with %s", res.Status)
	}
	if slices.ContainsFunc(s.list("jobs?state=queued"), func(r row) bool { return s.number(r.ID) == 987654321 }) {
		s.t.Error("its job is taken for demand")
	}
}

func suspended(s *site) {
	suspend := func(is bool) {
		s.t.Helper()
		if err := s.sim.Suspend(s.ctx, s.installation, is); err != nil {
			s.t.Fatal(err)
		}
	}
	suspend(true)
	id := s.queue(short("in the dark"))[0] // GitHub tells nobody
	suspend(false)
	s.ends("success", id)
}

func burst(s *site) {
	var jobs []githubsim.JobSpec
	for range 6 {
		jobs = append(jobs, short("matrix"))
	}
	s.ends("success", s.queue(jobs...)...)
}
