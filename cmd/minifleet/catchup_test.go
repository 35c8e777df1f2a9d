// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/githubapp/standin"
)

// nowhere is a webhook's URL at which nobody is: on GitHub's side everything fails.
const nowhere = "http://127.0.0.1:1/webhook"

// catchingUp looks for failed deliveries all the time, and for nothing else.
const catchingUp = "{repair: 1s, poll: 20s, reconcile: 1h, redelivery: 1s, pull: 1s}"

func (s *site) inject(f githubsim.Fault) {
	s.t.Helper()
	if err := s.sim.Inject(f); err != nil {
		s.t.Fatal(err)
	}
}

// known waits until the controller knows jobs in a state.
func (c *served) known(state string, jobs ...int64) {
	c.t.Helper()
	var have []string
	eventually(c.t, fmt.Sprintf("jobs %v are %s", jobs, state), func() bool {
		have = c.list("jobs", "--state", state).column("id")
		for _, id := range jobs {
			if !slices.Contains(have, fmt.Sprint(id)) {
				return false
			}
		}
		return true
	})
}

// caughtUp waits until every delivery that GitHub has made is in the books.
func (s *site) caughtUp(c *served) {
	s.t.Helper()
	eventually(s.t, "all deliveries are in the books", func() bool {
		var settled []string
		for _, row := range c.list("deliveries", "--limit", "500") {
			if row["status"] == "processed" {
				settled = append(settled, fmt.Sprint(row["guid"]))
			}
		}
		return !slices.ContainsFunc(s.sim.Deliveries(), func(d githubsim.Delivery) bool { return !slices.Contains(settled, d.GUID) })
	})
}

// every returns the ids of the jobs of some runs.
func every(runs []githubsim.Run) (ids []int64) {
	for _, r := range runs {
		ids = append(ids, r.JobIDs...)
	}
	return ids
}

// called counts the calls of GitHub's with a part of a path.
func (s *site) called(method, part string) (n int) {
	for _, r := range s.sim.Requests() {
		if r.Method == method && strings.Contains(r.Path, part) {
			n++
		}
	}
	return n
}

// Webhooks are dropped for a while: GitHub has tried, and says that it failed. All come from
// GitHub's copy, in their order and once, and those that were throttled do too. A server that
// cannot list failures alone makes no difference.
func TestDroppedWebhooksAreCaughtUpWith(t *testing.T) {
	t.Parallel()
	s := newSiteAt(t, githubsim.Options{Kind: true, KeyPool: 1, OldServer: true})
	s.timing = catchingUp
	c := s.serve()
	before := s.queue(macLabels())
	s.delivered()
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryThrottled, Path: "workflow_job.queued", Count: 2})
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryFailed, Count: -1})
	var runs []githubsim.Run
	for range 8 {
		runs = append(runs, s.queue(macLabels()))
	}
	if err := s.sim.CancelRun(runs[3].ID); err != nil {
		t.Fatal(err)
	}
	s.delivered()
	c.known("queued", every(slices.Delete(slices.Clone(runs), 3, 4))...)
	c.known("completed", runs[3].JobIDs[0])
	s.caughtUp(c)
	s.sim.ClearFaults()
	after := s.queue(macLabels())
	c.known("queued", after.JobIDs[0], before.JobIDs[0])
	for _, row := range c.list("deliveries", "--limit", "500") {
		if fmt.Sprint(row["times"]) != "1" || row["status"] != "processed" {
			t.Errorf("delivery %v was taken %v times and is %v", row["guid"], row["times"], row["status"])
		}
	}
	if n := s.called(http.MethodPost, "/attempts"); n != 0 {
		t.Errorf("GitHub was asked for %d deliveries again, which it shows", n)
	}
}

// The controller was away. What came meanwhile is caught up with at its start, and what it
// had before is not read again.
func TestControllerWasDown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = catchingUp
	c := s.serve()
	s.queue(macLabels())
	s.delivered()
	c.stop()
	s.webhookAt(nowhere)
	var runs []githubsim.Run
	for range 52 { // with the runs' own news more than a page
		runs = append(runs, s.queue(macLabels()))
	}
	s.delivered()
	s.timing = strings.Replace(catchingUp, "redelivery: 1s", "redelivery: 1h", 1) // the start is enough
	c = s.serve()
	s.caughtUp(c)
	c.known("queued", every(runs)...)
	failed := slices.DeleteFunc(s.sim.Deliveries(), func(d githubsim.Delivery) bool { return d.StatusCode != 502 })
	gets := s.called(http.MethodGet, "/app/hook/deliveries/")
	if len(failed) <= 100 || gets != len(failed) {
		t.Errorf("%d deliveries failed, %d were read", len(failed), gets)
	}
	c.stop()
	c = s.serve()
	again := s.queue(macLabels())
	c.known("queued", again.JobIDs[0])
	if n := s.called(http.MethodGet, "/app/hook/deliveries/"); n != gets {
		t.Errorf("%d deliveries were read again at the next start", n-gets)
	}
}

// The database was locked, GitHub was told 503, and nobody redelivers anything by hand.
func TestRefusedDeliveriesAreCaughtUpWith(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = catchingUp
	c := s.serve()
	s.delivered()
	db, err := sql.Open("sqlite", "file:"+s.path("state.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.ExecContext(t.Context(), "PRAGMA busy_timeout = 5000; BEGIN EXCLUSIVE"); err != nil {
		t.Fatal(err)
	}
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Path: "workflow_run", Count: -1}) // it would only take longer
	job := s.queue(macLabels()).JobIDs[0]
	s.attempted()
	if !slices.ContainsFunc(s.sim.Deliveries(), func(d githubsim.Delivery) bool {
		return d.JobID == job && d.StatusCode == http.StatusServiceUnavailable
	}) {
		t.Fatalf("nothing was refused: %+v", s.sim.Deliveries())
	}
	if _, err := db.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	s.caughtUp(c)
	c.known("queued", job)
}

// GitHub has tried and does not show what: it is asked to try again.
func TestRedeliveryIsAskedFor(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = catchingUp
	c := s.serve()
	s.delivered()
	s.inject(githubsim.Fault{Kind: githubsim.DeliveryBare, Path: "workflow_job.queued"})
	job := s.queue(macLabels()).JobIDs[0]
	s.delivered()
	s.caughtUp(c)
	c.known("queued", job)
	if n := s.called(http.MethodPost, "/attempts"); n != 1 {
		t.Errorf("GitHub was asked %d times", n)
	}
	all := s.sim.Deliveries()
	if last := all[len(all)-1]; !last.Redelivery || last.JobID != job || last.StatusCode != http.StatusAccepted {
		t.Errorf("the last delivery is %+v", last)
	}
}

// Somebody between GitHub and here has said yes and forgotten: no list of deliveries shows
// that, and GitHub's lists of jobs do.
func TestLostAfterSuccessIsFoundByThePoll(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = strings.Replace(catchingUp, "reconcile: 1h", "reconcile: 1s", 1)
	c := s.serve()
	s.delivered()
	s.inject(githubsim.Fault{Kind: githubsim.DeliverySwallowed, Count: -1})
	job := s.queue(macLabels()).JobIDs[0]
	s.delivered()
	c.known("queued", job)
	if n := slices.IndexFunc(c.list("deliveries"), func(r map[string]any) bool { return r["event"] == "workflow_job" }); n >= 0 {
		t.Error("a delivery came")
	}
	if err := s.sim.CancelJob(job); err != nil {
		t.Fatal(err)
	}
	c.known("completed", job)
}

// Nothing listens for deliveries, there is no secret, and the App's webhook points nowhere.
// A job gets its runner, runs, and leaves nothing behind.
func TestOutboundOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = catchingUp
	s.secrets = "deliveries: pull"
	s.webhookAt(nowhere)
	c := s.serveWithoutWebhook()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	h := startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), c.hostToken("mini-1")), g)
	job := s.queue(macLabels()).JobIDs[0]
	c.known("queued", job)
	c.one("phase", "idle", "runners")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	h.seen.mu.Lock()
	jit := h.seen.all[0]
	h.seen.mu.Unlock()
	// The listener that the simulated guest has not.
	if code := standin.Run(ctx, standin.Options{Getenv: variables("ACTIONS_RUNNER_INPUT_JITCONFIG", jit.Reveal()), Stdout: io.Discard, Stderr: io.Discard, Dir: t.TempDir()}); code != 0 {
		t.Errorf("the listener ended with %d", code)
	}
	c.known("completed", job)
	eventually(t, "the runner is gone", func() bool { return len(c.list("runners")) == 0 })
	for _, d := range s.sim.Deliveries() {
		if d.StatusCode == http.StatusAccepted {
			t.Errorf("%s.%s was delivered", d.Event, d.Action)
		}
	}
	if rows := c.list("deliveries", "--status", "failed"); len(rows) > 0 {
		t.Errorf("failed here: %v", rows)
	}
	if strings.Contains(c.log.String(), "part=webhook address") {
		t.Error("the webhook listener is open")
	}
}

// serveWithoutWebhook starts a controller that nothing can be delivered to.
func (s *site) serveWithoutWebhook() *served {
	s.t.Helper()
	c := &served{t: s.t, log: &buffer{}, ended: make(chan struct{})}
	s.start(c, map[string]*string{"agents": &c.agents, "admin": &c.admin})
	return c
}
