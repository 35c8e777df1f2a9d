// SPDX-License-Identifier: MIT

package site_test

import (
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
	s.unhurried()
	s.config = strings.Replace(s.config, "timing: {", "timing: {reconcile: 2s, absence: 3s, ", 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	s.haunted(
		ghost{"a job behind a gate is no demand until it is approved (runs-on#539)", gated},
		ghost{"failed jobs are run again (actions-runner-controller#4315)", runAgain},
		ghost{"cancelled before any runner had it (actions-runner-controller PR 2520)", cancelledEarly},
		ghost{"skipped without ever having been queued (actions-runner-controller#836)", skipped},
		ghost{"the name of a runner is taken: 409 (ubicloud#692)", nameTaken},
		ghost{"registered, and answered with 502 (runs-on#30)", registeredAndFailed},
		ghost{"the runner group refuses: 403", groupRefuses},
		ghost{"429 with Retry-After", slowDown},
		ghost{"an outage while a job runs (actions-runner#4076)", outage},
		ghost{"no webhook ever comes (ubicloud#1042)", webhooksLost},
		ghost{"a webhook is answered by somebody else and lost", swallowed},
		ghost{"told in the wrong order, late and twice", disorder},
		ghost{"a delivery for an installation that nobody knows (runs-on#509)", foreign},
		ghost{"queued while the installation was suspended", suspended},
		ghost{"a burst of a matrix takes each other's runners (tuist#11862)", burst},
		ghost{"all of it at once", atOnce},
	)
	agent.stop()
	controller.stop()
}

// ghost is what GitHub has been seen to do, and by whom it was reported.
type ghost struct {
	name string
	run  func(*site)
}

// haunted meets ghosts one after the other. Each finds GitHub without faults, and leaves
// nothing behind.
func (s *site) haunted(ghosts ...ghost) {
	s.t.Helper()
	whole := s.t
	for _, g := range ghosts {
		whole.Run(g.name, func(t *testing.T) {
			s.t, s.whole = t, whole
			defer func() { s.t, s.whole = whole, nil }()
			g.run(s)
			if err := s.sim.ClearFaults(s.ctx); err != nil {
				t.Fatal(err)
			}
			s.nothingLeft()
		})
	}
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
	defer func() {
		if s.t.Failed() {
			s.t.Logf("job %d is explained so: %s", id, said)
		}
	}()
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

func swallowed(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliverySwallowed, Count: -1})
	s.ends("success", s.queue(short("said-yes"))...)
}

func disorder(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLate, Path: "workflow_job.queued", Delay: 3 * time.Second, Count: 2})
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLate, Path: "workflow_job.in_progress", Delay: 4 * time.Second, Count: 2})
	s.ends("success", s.queue(short("first"), short("second"))...)
}

func foreign(s *site) {
	body, err := json.Marshal(map[string]any{
		"action": "queued", "installation": map[string]any{"id": 666},
		"repository":   map[string]any{"full_name": "octo/demo", "name": "demo", "owner": map[string]any{"login": "octo"}},
		"workflow_job": map[string]any{"id": 987654321, "run_id": 1, "status": "queued", "name": "foreign", "labels": []string{"self-hosted", "demo"}},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	if status, said := s.post(s.signed("11111111-2222-3333-4444-555555555555", "workflow_job", body)); status != http.StatusAccepted {
		s.t.Errorf("an authentic delivery is answered with %d %s", status, said)
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

// atOnce has calls and deliveries fail in every way, each some times: it ends before patience
// does, whatever of it comes together.
func atOnce(s *site) {
	const each = 3
	for _, f := range []githubsim.Fault{
		{Kind: githubsim.FaultStatus},
		{Kind: githubsim.FaultStatus, Status: http.StatusServiceUnavailable},
		{Kind: githubsim.FaultDrop},
		{Kind: githubsim.FaultTimeoutAfterSuccess},
		{Kind: githubsim.FaultTimeoutAfterSuccess, Status: http.StatusGatewayTimeout},
		{Kind: githubsim.FaultDelay, Delay: time.Second},
	} {
		f.Path, f.Count, f.Rate = "/repos/octo/", each, 0.2
		s.inject(f)
	}
	for _, f := range []githubsim.Fault{
		{Kind: githubsim.DeliveryLost},
		{Kind: githubsim.DeliveryFailed},
		{Kind: githubsim.DeliveryBare},
		{Kind: githubsim.DeliveryThrottled},
		{Kind: githubsim.DeliverySwallowed},
		{Kind: githubsim.DeliveryLate, Delay: time.Second},
	} {
		f.Count, f.Rate = each, 0.3
		if f.Kind == githubsim.DeliveryLost || f.Kind == githubsim.DeliverySwallowed {
			f.Count = 1 // a job of which nothing at all is told, and that ends between two looks, stays unknown
		}
		s.inject(f)
	}
	ids := s.queue(short("one"), short("two"), short("three"), short("four"), short("five"), short("not wanted"))
	if err := s.sim.CancelJob(s.ctx, ids[5]); err != nil {
		s.t.Fatal(err)
	}
	s.ends("success", ids[:5]...)
	s.untilEnd(ids[5], "it ends")
}
