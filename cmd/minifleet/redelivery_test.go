// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // to lock the controller's database from outside

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func TestReplayIsStoredOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	s.queue(macLabels())
	s.delivered()
	key := s.sim.WebhookSecret().Reveal()
	first := delivery{guid: "one", event: "workflow_job", body: s.genuine(7101)}
	if code, a := c.post(s, key, first); code != 202 || a["duplicate"] == true {
		t.Errorf("first: %d %v", code, a)
	}
	for range 3 {
		if code, a := c.post(s, key, first); code != 202 || a["duplicate"] != true {
			t.Errorf("replayed: %d %v", code, a)
		}
	}
	// The same GUID with another job in it is a replay too, and changes nothing.
	if code, a := c.post(s, key, delivery{guid: "one", event: "workflow_job", body: s.genuine(7102)}); code != 202 || a["duplicate"] != true {
		t.Errorf("replayed with another body: %d %v", code, a)
	}
	if ids := c.list("jobs").column("id"); slices.Contains(ids, "7102") || !slices.Contains(ids, "7101") {
		t.Errorf("jobs %v", ids)
	}
	for _, row := range c.list("deliveries") {
		if row["guid"] == "one" && fmt.Sprint(row["times"]) != "5" {
			t.Errorf("delivered %v times, want 5", row["times"])
		}
	}
}

func TestFailedDeliveryIsProcessedWhenItComesWhole(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	s.queue(macLabels())
	s.delivered()
	key := s.sim.WebhookSecret().Reveal()
	whole := s.genuine(7201)
	if _, a := c.post(s, key, delivery{guid: "half", event: "workflow_job", body: whole[:200]}); a["status"] != "failed" {
		t.Fatalf("half of it: %v", a)
	}
	if _, a := c.post(s, key, delivery{guid: "half", event: "workflow_job", body: whole}); a["status"] != "processed" || a["duplicate"] == true {
		t.Fatalf("all of it: %v", a)
	}
	if ids := c.list("jobs").column("id"); !slices.Contains(ids, "7201") {
		t.Errorf("jobs %v, want 7201 among them", ids)
	}
	if failed := c.list("deliveries", "--status", "failed"); len(failed) != 0 {
		t.Errorf("still failed: %v", failed)
	}
}

// The news of a new installation is lost, and the first job there with it: both are
// known once GitHub sends the news again, or the controller reads GitHub's own list.
func TestLateNewsOfAnInstallation(t *testing.T) {
	t.Parallel()
	for name, mend := range map[string]func(*testing.T, *site, *served) *served{
		"sent again": func(t *testing.T, s *site, c *served) *served {
			all := s.sim.Deliveries()
			lost := slices.IndexFunc(all, func(d githubsim.Delivery) bool { return d.Event == "installation" && d.StatusCode == 502 })
			if lost < 0 {
				t.Fatalf("no news was lost: %+v", all)
			}
			if err := s.sim.Redeliver(all[lost].ID); err != nil {
				t.Fatal(err)
			}
			return c
		},
		"read at a restart": func(_ *testing.T, s *site, c *served) *served {
			c.stop()
			return s.serve()
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.pools = strings.ReplaceAll(s.pools, "scopes: [octo/demo]", "scopes: [octo/demo, acme]")
			c := s.serve()
			s.installationsRead(c)
			if err := s.sim.Inject(githubsim.Fault{Kind: githubsim.DeliveryFailed, Path: "installation.created"}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.sim.AddInstallation(githubsim.Installation{Account: "acme", Repositories: []string{"rockets"}}); err != nil {
				t.Fatal(err)
			}
			r, err := s.sim.QueueRun(githubsim.Workflow{Repo: "acme/rockets", Jobs: []githubsim.JobSpec{{Name: "x", Labels: macLabels(), Steps: []githubsim.Step{{Run: "true"}}}}})
			if err != nil {
				t.Fatal(err)
			}
			s.delivered()
			if failed := c.get("deliveries", "--status", "failed"); !strings.Contains(failed, "unknown installation") || !strings.Contains(failed, "acme/rockets") {
				t.Fatalf("failed deliveries:\n%s", failed)
			}
			c = mend(t, s, c)
			eventually(t, "the job is known", func() bool {
				return slices.Contains(c.list("jobs", "--repo", "acme/rockets").column("id"), fmt.Sprint(r.JobIDs[0]))
			})
			eventually(t, "none of its deliveries is failed any more", func() bool {
				return !slices.Contains(c.list("deliveries", "--status", "failed").column("repository"), "acme/rockets")
			})
		})
	}
}

// installationsRead queues a job and waits until the controller has read GitHub's
// installations: until then it takes every one for known.
func (s *site) installationsRead(c *served) {
	s.t.Helper()
	known := s.queue(macLabels()).JobIDs[0]
	s.delivered()
	probes := 0
	eventually(s.t, "the controller has read the installations", func() bool {
		probes++
		probe := delivery{guid: fmt.Sprintf("probe-%d", probes), event: "workflow_job", body: s.genuine(known, inInstallation(999))}
		_, answer := c.post(s, s.sim.WebhookSecret().Reveal(), probe)
		return answer["status"] == "failed"
	})
}

func TestStoreDown(t *testing.T) {
	t.Parallel()
	s := newSite(t)
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
	if err := s.sim.Inject(githubsim.Fault{Kind: githubsim.DeliveryLost, Path: "workflow_run", Count: -1}); err != nil { // it would only take longer
		t.Fatal(err)
	}
	job := s.queue(macLabels()).JobIDs[0]
	if code := probe(t, c.admin+"/readyz"); code != http.StatusServiceUnavailable {
		t.Errorf("readyz answers %d while the database is locked", code)
	}
	s.attempted()
	if code := probe(t, c.admin+"/healthz"); code != http.StatusOK {
		t.Errorf("healthz answers %d: the process itself is well", code)
	}
	of := func(code int) []githubsim.Delivery {
		return slices.DeleteFunc(s.sim.Deliveries(), func(d githubsim.Delivery) bool { return d.JobID != job || d.StatusCode != code })
	}
	refused := of(http.StatusServiceUnavailable)
	if len(refused) == 0 || len(of(http.StatusAccepted)) > 0 {
		t.Fatalf("deliveries while the database was locked: %+v", s.sim.Deliveries())
	}
	if rows := c.list("jobs"); len(rows) != 0 {
		t.Errorf("jobs %v: nothing was acknowledged", rows)
	}
	if _, err := db.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	for _, d := range refused {
		if err := s.sim.Redeliver(d.ID); err != nil {
			t.Fatal(err)
		}
	}
	s.delivered()
	if ids := c.list("jobs").column("id"); !slices.Equal(ids, []string{fmt.Sprint(job)}) || len(of(http.StatusAccepted)) == 0 {
		t.Errorf("after the redelivery: jobs %v, want %d", ids, job)
	}
	if code := probe(t, c.admin+"/readyz"); code != http.StatusOK {
		t.Errorf("readyz answers %d", code)
	}
}

func probe(t *testing.T, url string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

func TestSecretsDuringRotation(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.file("new.secret", "the new secret")
	s.secrets = "webhook_secret_file: new.secret\n  webhook_secret_previous_file: webhook.secret"
	c := s.serve()
	s.queue(macLabels())
	s.delivered() // signed with the previous secret
	old := s.sim.WebhookSecret().Reveal()
	if ids := c.list("jobs"); len(ids) != 1 {
		t.Fatalf("jobs %v: GitHub still signs with the secret before", ids)
	}
	for key, want := range map[string]int{old: 202, "the new secret": 202, "a third": 401} {
		if code, a := c.post(s, key, delivery{guid: "r-" + hex.EncodeToString([]byte(key))[:12], event: "workflow_job", body: s.genuine(7301)}); code != want {
			t.Errorf("signed with %q: %d %v, want %d", key, code, a, want)
		}
	}
	body := s.genuine(7302)
	c.stop()
	s.secrets = "webhook_secret_file: new.secret"
	c = s.serve()
	for key, want := range map[string]int{old: 401, "the new secret": 202} {
		if code, a := c.post(s, key, delivery{guid: "after", event: "workflow_job", body: body}); code != want {
			t.Errorf("after the rotation, signed with %q: %d %v, want %d", key, code, a, want)
		}
	}
}
