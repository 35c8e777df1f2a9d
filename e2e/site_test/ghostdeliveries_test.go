// SPDX-License-Identifier: MIT

package site_test

import (
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// Ghosts of deliveries: those that fail, come again or come from somebody else, and those of
// a time when nobody listened. GitHub's lists are read at the start alone, so that nothing
// but deliveries tells of a job.
func TestGhostsOfDeliveries(t *testing.T) {
	turn(t)
	s, _ := newSimulated(t, githubsim.Options{Seed: 131, Kind: true, OneKey: true, Timing: githubsim.Timing{DeliveryTimeout: time.Minute}})
	s.unhurried()
	s.config = strings.Replace(s.config, "timing: {", "timing: {reconcile: 1h, redelivery: 1s, ", 1)
	controller := s.startController()
	agent := s.startAgent("mini-1")
	s.haunted(
		ghost{"deliveries fail for a while (ubicloud#741)", failedDeliveries},
		ghost{"GitHub does not show what failed: it is asked again, and says 202", func(s *site) { bareDelivery(s, controller) }},
		ghost{"a redelivery has the GUID of the first", redelivered},
		ghost{"what could not be read comes again whole, under its GUID", halfAndWhole},
		ghost{"deliveries that are not GitHub's, and what else it sends", forged},
		ghost{"a delivery of 25 MB", large},
		ghost{"a job without labels (actions-runner-controller#1370)", unlabelled},
		ghost{"the controller is down while jobs come and go", func(s *site) { controller = s.down(controller) }},
		ghost{"the webhook's secret is empty", emptySecret},
	)
	agent.stop()
	controller.stop()
}

// newSimulated makes a site whose GitHub is in the test's own process.
func newSimulated(t *testing.T, options githubsim.Options) (*site, *githubsim.Sim) {
	t.Helper()
	programs(t)
	dir := folder(t)
	github := simulate(t, options)
	return newSiteAt(t, dir, github.URL()), github
}

// simulate starts a GitHub in the test's own process.
func simulate(t *testing.T, options githubsim.Options) *githubsim.Sim {
	t.Helper()
	github, err := githubsim.New(options)
	if err == nil {
		err = github.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := github.Close(); err != nil {
			t.Errorf("close the simulated GitHub: %v", err)
		}
	})
	return github
}

// received is a delivery in the books.
type received struct {
	GUID       string    `json:"guid"`
	Status     string    `json:"status"`
	Times      int       `json:"times"`
	ReceivedAt time.Time `json:"received_at"`
}

// delivered returns the deliveries in the books by their GUIDs.
func (s *site) delivered() map[string]received {
	s.t.Helper()
	rows := map[string]received{}
	for _, d := range all[received](s, "deliveries") {
		rows[d.GUID] = d
	}
	return rows
}

// attempts returns all attempts of GitHub's to deliver, oldest first.
func (s *site) attempts() []githubsim.Delivery {
	s.t.Helper()
	list, err := s.sim.Deliveries(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return list
}

// caughtUp waits until the controller has every delivery that GitHub has tried.
func (s *site) caughtUp() {
	s.t.Helper()
	eventually(s.t, "every delivery is in the books", func() bool {
		have := s.delivered()
		return !slices.ContainsFunc(s.attempts(), func(d githubsim.Delivery) bool {
			status := have[d.GUID].Status
			return status != "processed" && status != "ignored"
		})
	})
}

// over waits until jobs have ended well, without any delivery being made again by hand.
func (s *site) over(ids ...int64) {
	s.t.Helper()
	for _, id := range ids {
		if j := s.untilJob(id, "it ends", githubsim.Job.Done); j.Conclusion != "success" {
			s.t.Errorf("job %s ended with %s %s", j.Name, j.Conclusion, j.Reason)
		}
	}
}

// calls returns GitHub's answers to calls of a method whose path has a part.
func (s *site) calls(method, part string) (answers []int) {
	s.t.Helper()
	requests, err := s.sim.Requests(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, r := range requests {
		if r.Method == method && strings.Contains(r.Path, part) {
			answers = append(answers, r.Status)
		}
	}
	return answers
}

// registrations counts the runners that were ever registered.
func (s *site) registrations() int {
	s.t.Helper()
	list, err := s.sim.Runners(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return len(list)
}

func failedDeliveries(s *site) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryThrottled, Path: "workflow_job.queued"})
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryFailed, Count: -1})
	s.over(s.queue(short("unheard"), short("unheard-too"))...)
	s.caughtUp()
	if again := s.calls(http.MethodPost, "/attempts"); len(again) > 0 {
		s.t.Errorf("GitHub was asked %d times for deliveries that it shows", len(again))
	}
}

func bareDelivery(s *site, controller *program) {
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryBare, Path: "workflow_job.queued"})
	s.over(s.queue(short("not-shown"))...)
	s.caughtUp()
	if again := s.calls(http.MethodPost, "/attempts"); !slices.Equal(again, []int{http.StatusAccepted}) {
		s.t.Errorf("GitHub was asked again, and answered %v, want one 202", again)
	}
	controller.await("202 is no error", func(said string) bool { return strings.Contains(said, "a delivery is asked for again") })
}

// first waits for GitHub's first delivery of an action of a job.
func (s *site) first(job int64, action string) githubsim.Delivery {
	s.t.Helper()
	var found githubsim.Delivery
	eventually(s.t, fmt.Sprintf("GitHub says that job %d is %s", job, action), func() bool {
		list := s.attempts()
		i := slices.IndexFunc(list, func(d githubsim.Delivery) bool {
			return d.JobID == job && d.Event == "workflow_job" && d.Action == action
		})
		if i >= 0 {
			found = list[i]
		}
		return i >= 0
	})
	return found
}

func redelivered(s *site) {
	id := s.queue(short("once"))[0]
	s.over(id)
	s.caughtUp()
	before, first := s.registrations(), s.first(id, "queued")
	for range 2 {
		if err := s.sim.Redeliver(s.ctx, first.ID); err != nil {
			s.t.Fatal(err)
		}
	}
	eventually(s.t, "it has come three times", func() bool { return s.delivered()[first.GUID].Times == 3 })
	if state := s.stateOf(id); state != "completed" {
		s.t.Errorf("the job is %s again", state)
	}
	s.over(s.queue(short("next"))...)
	if n := s.registrations() - before; n != 1 {
		s.t.Errorf("%d runners were made for one job", n)
	}
}

// stateOf is a job's state in the books.
func (s *site) stateOf(id int64) string {
	s.t.Helper()
	for _, j := range all[jobRow](s, "jobs") {
		if j.ID == id {
			return j.State
		}
	}
	return ""
}

func unlabelled(s *site) {
	run, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{short("unlabelled")}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.explained(run.JobIDs[0], "the job asks for no label, and no pool is matched by none")
	before := s.registrations()
	s.over(s.queue(short("labelled"))...)
	if n := s.registrations() - before; n != 1 || s.job(run.JobIDs[0]).Attempts > 0 {
		s.t.Errorf("%d runners were made for one job with labels and one without", n)
	}
	if err := s.sim.CancelRun(s.ctx, run.ID); err != nil {
		s.t.Fatal(err)
	}
	eventually(s.t, "the books say so", func() bool { return s.stateOf(run.JobIDs[0]) == "completed" })
}

// down stops the controller and starts it again. What GitHub has told nobody meanwhile is
// more than one page of its list, and is taken in its order.
func (s *site) down(controller *program) *program {
	controller.stop()
	labels := []string{"self-hosted", "demo"}
	queue := func(name, script string) githubsim.Run {
		run, err := s.sim.QueueRun(s.ctx, githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{{Name: name, Labels: labels, Steps: []githubsim.Step{{Run: script}}}}})
		if err != nil {
			s.t.Fatal(err)
		}
		return run
	}
	stays := queue("stays", "true")
	for i := range 26 {
		run := queue(fmt.Sprintf("goes-%d", i), "false")
		if err := s.sim.CancelRun(s.ctx, run.ID); err != nil {
			s.t.Fatal(err)
		}
	}
	var missed []githubsim.Delivery
	eventually(s.t, "GitHub has tried to tell all of it", func() bool {
		missed = slices.DeleteFunc(s.attempts(), func(d githubsim.Delivery) bool { return d.RunID < stays.ID })
		return len(missed) == 26*4+2
	})
	controller = s.startController()
	s.over(stays.JobIDs...)
	s.caughtUp()
	have, last := s.delivered(), time.Time{}
	for _, d := range missed {
		at := have[d.GUID].ReceivedAt
		if d.StatusCode/100 == 2 || at.Before(last) || have[d.GUID].Times != 1 {
			s.t.Errorf("%s.%s, answered %d, was taken %d times, at %s: that before it at %s", d.Event, d.Action, d.StatusCode, have[d.GUID].Times, at, last)
		}
		last = at
	}
	return controller
}

func emptySecret(s *site) {
	text, err := os.ReadFile(s.path("controller.yaml"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.file("empty.secret", "")
	other := strings.NewReplacer("webhook.secret", "empty.secret", "minifleet.db", "other.db").Replace(string(text))
	code, said := s.launch("minifleet", "serve", "--config", s.file("empty.yaml", other)).exit()
	if code == 0 || !strings.Contains(said, "webhook_secret") {
		s.t.Errorf("it ended with status %d:\n%s", code, said)
	}
}
