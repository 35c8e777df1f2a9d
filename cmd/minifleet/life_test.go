// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/keepport"
)

// waiting checks that explain gives a code for a job, and words that hold a part, and tells
// people the same: which a job's state, in between, may have changed.
func (c *served) waiting(job, code, part string) {
	c.t.Helper()
	var got, reason, text string
	defer func() {
		if c.t.Failed() {
			c.t.Logf("job %s was explained last as %s: %s\nto people as:\n%s", job, got, reason, text)
		}
	}()
	eventually(c.t, fmt.Sprintf("job %s waits because of %s: %s", job, code, part), func() bool {
		if got, reason = c.explain(job); got != code || !strings.Contains(reason, part) {
			return false
		}
		text = c.get("explain", job)
		return strings.Contains(text, "why: ") && strings.Contains(text, "("+code+")")
	})
}

// The life of a job and its runner as an operator sees it, step by step.
func TestLifeOfAJob(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	run := s.queue(macLabels(), []string{"self-hosted", "windows"})
	id, foreign := fmt.Sprint(run.JobIDs[0]), fmt.Sprint(run.JobIDs[1])
	s.delivered()

	c.waiting(foreign, "no_pool", "windows")
	c.waiting(id, "no_host", "mac")
	if hosts := c.get("hosts"); !strings.Contains(hosts, "no hosts") {
		t.Errorf("hosts before any joined:\n%s", hosts)
	}

	token := c.hostToken("mini-1")
	h := startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), token), newGates())
	runner := c.one("phase", "preparing", "runners")
	name := fmt.Sprint(runner["id"])
	c.waiting(id, "booting", "is coming: preparing (waiting at the gate)")
	if mints := s.mints(); mints != 0 {
		t.Errorf("%d registrations made for a VM that is not there yet", mints)
	}
	h.gates.create.open()
	c.one("phase", "booting", "runners")
	c.waiting(id, "booting", "is coming: booting")
	h.gates.start.open()
	eventually(t, "GitHub has the registration", func() bool { return s.mints() == 1 })
	c.waiting(id, "registering", "")
	h.gates.config.open()
	c.one("phase", "idle", "runners")
	c.waiting(id, "assignment", "")

	registered := s.sim.Runners()
	if len(registered) != 1 || !slices.Equal(registered[0].Labels, []string{"self-hosted", "macOS", "ARM64"}) || registered[0].Scope != "octo/demo" {
		t.Errorf("registered at GitHub: %+v", registered)
	}
	if row := c.one("id", name, "runners"); row["runner_name"] != registered[0].Name || row["host_name"] != "mini-1" || row["pool"] != "mac" {
		t.Errorf("runner %v, want name %s", row, registered[0].Name)
	}
	if table := c.get("jobs"); !strings.Contains(table, "queued") || !strings.Contains(table, name) {
		t.Errorf("jobs:\n%s", table)
	}

	if err := s.sim.CancelJob(run.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the runner is gone", func() bool { return len(c.list("runners")) == 0 })
	eventually(t, "its registration is deleted", func() bool { return !s.sim.Runners()[0].RemovedAt.IsZero() })
	if past := c.one("phase", "gone", "runners", "--all"); past["id"] != name {
		t.Errorf("runners of the past: %v", past)
	}
	timeline := c.get("timeline", name)
	at := 0
	for _, phase := range []string{"placed", "preparing", "booting", "standby", "armed", "registering", "idle", "destroying", "gone"} {
		next := strings.Index(timeline[at:], " "+phase+" ")
		if next < 0 {
			t.Errorf("the timeline lacks %s, or has it too early:\n%s", phase, timeline)
			break
		}
		at += next
	}
	if explained := c.get("explain", id); !strings.Contains(explained, "cancelled") {
		t.Errorf("a cancelled job is explained as:\n%s", explained)
	}
	if n := s.mints(); n != 1 {
		t.Errorf("%d registrations made for one job", n)
	}
	s.noSecrets(c, h, token.Reveal())
}

// mints counts the registrations that GitHub was asked for with success.
func (s *site) mints() int {
	n := 0
	for _, r := range s.sim.Requests() {
		if r.Method == http.MethodPost && strings.HasSuffix(r.Path, "/generate-jitconfig") && r.Status == http.StatusCreated {
			n++
		}
	}
	return n
}

// noSecrets looks for secrets where none may be: in logs and in the database.
func (s *site) noSecrets(c *served, h *host, token string) {
	s.t.Helper()
	h.stop()
	c.stop()
	places := map[string]string{"controller's log": c.log.String(), "agent's log": h.log.String(), "database": s.read("state.db") + s.read("state.db-wal")}
	secrets := map[string]string{"webhook secret": s.sim.WebhookSecret().Reveal(), "operator's token": operatorToken, "enrolment token": token}
	for i, line := range strings.Split(s.sim.PrivateKeyPEM().Reveal(), "\n") {
		if len(line) > 40 && !strings.HasPrefix(line, "-") {
			secrets[fmt.Sprintf("line %d of the private key", i)] = line
		}
	}
	if len(h.seen.all) == 0 {
		s.t.Error("no guest was given a JIT config: there is nothing to look for")
	}
	for i, jit := range h.seen.all {
		secrets[fmt.Sprintf("JIT config %d", i)] = jit.Reveal()
	}
	for where, text := range places {
		for what, secret := range secrets {
			if strings.Contains(text, secret) {
				s.t.Errorf("the %s holds the %s", where, what)
			}
		}
	}
}

// A restart forgets nothing and disturbs nobody.
func TestRestart(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.agents = fmt.Sprintf(`{address: %q}`, keepport.Address(t))
	c := s.serve()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	h := startHost(t, hostConfig(t, c.agents, "mini-1", t.TempDir(), c.hostToken("mini-1")), g)
	run := s.queue(macLabels(), []string{"self-hosted", "windows"})
	s.delivered()
	before := c.one("phase", "idle", "runners")
	site, _, _ := strings.Cut(s.sim.Runners()[0].Name, "-")

	seen := fmt.Sprint(c.list("hosts")[0]["seen_at"])
	c.stop() // the agent's desired call is open
	again := s.serve()
	if jobs := again.list("jobs"); len(jobs) != 2 {
		t.Errorf("jobs after the restart: %v", jobs)
	}
	eventually(t, "the agent has come back", func() bool { return fmt.Sprint(again.list("hosts")[0]["seen_at"]) != seen })
	if after := again.one("phase", "idle", "runners"); after["id"] != before["id"] || after["runner_name"] != before["runner_name"] {
		t.Errorf("runner before %v, after %v", before, after)
	}
	// What comes now is dealt with by the same host under the same site id.
	second := s.queue(macLabels())
	eventually(t, "a second runner is registered", func() bool { return len(s.sim.Runners()) == 2 })
	if name := s.sim.Runners()[1].Name; !strings.HasPrefix(name, site+"-") {
		t.Errorf("a runner of the same database is called %s, of another site than %s", name, site)
	}
	again.waiting(fmt.Sprint(second.JobIDs[0]), "assignment", "")
	for _, id := range append(run.JobIDs, second.JobIDs...) {
		if err := s.sim.CancelJob(id); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "every runner is gone", func() bool { return len(again.list("runners")) == 0 })
	if err := h.stop(); err != nil {
		t.Errorf("the agent ended with: %v", err)
	}
}

// An open desired call waits for an hour: a stop that waited for it would break it off, and say so.
func TestStopIsPrompt(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.timing = "{host_deadline: 3h, lease: 3h, poll: 1h}"
	c := s.serve()
	startHost(t, hostConfig(t, c.agents, "mini-1", "", c.hostToken("mini-1")), newGates())
	c.one("state", "online", "hosts")
	c.stop()
}

func TestHostIsRemoved(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	cfg := hostConfig(t, c.agents, "mini-1", t.TempDir(), c.hostToken("mini-1"))
	h := startHost(t, cfg, newGates())
	row := c.one("state", "online", "hosts")
	id := fmt.Sprint(row["id"])
	if row["name"] != "mini-1" || fmt.Sprintf("%v of %v", row["free_slots"], row["slots"]) != "2 of 2" {
		t.Errorf("host %v", row)
	}
	eventually(t, "the table of hosts shows it, and its images, which a late list tells after the greeting", func() bool {
		table := c.get("hosts")
		return strings.Contains(table, "2 of 2") && strings.Contains(table, "sonoma") && strings.Contains(table, "online")
	})
	out, err := c.cli("host", "remove", id)
	if err != nil || out != "host "+id+" removed\n" {
		t.Errorf("host remove: %q %v", out, err)
	}
	eventually(t, "the agent hears of it", func() bool { return strings.Contains(h.log.String(), "answered 401 (credential)") })
	h.stop()
	if err := startHost(t, cfg, newGates()).end(); err == nil || !strings.Contains(err.Error(), "removed or revoked") {
		t.Errorf("an agent started for a removed host ended with: %v", err)
	}
	if rows := c.list("hosts"); len(rows) != 0 {
		t.Errorf("hosts %v", rows)
	}
	if out, err := c.cli("host", "remove", id); err == nil || !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), id) {
		t.Errorf("removed again: %q %v", out, err)
	}
}

func TestEnrolmentTokenWorksOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	token := c.hostToken("mini-1")
	startHost(t, hostConfig(t, c.agents, "whatever", "", token), newGates())
	if row := c.one("state", "online", "hosts"); row["name"] != "mini-1" {
		t.Errorf("host %v, want the name that the token fixes", row)
	}
	second := startHost(t, hostConfig(t, c.agents, "mini-2", "", token), newGates())
	if err := second.end(); err == nil || !strings.Contains(err.Error(), "new enrolment token") {
		t.Errorf("enrolled again with a used token: %v", err)
	}
	if rows := c.list("hosts"); len(rows) != 1 {
		t.Errorf("hosts %v", rows)
	}
}

// Standbys are kept beyond demand and hold nothing of GitHub's.
func TestStandby(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.pools = strings.Replace(s.pools, "image: sonoma", "image: sonoma\n    standby: 1", 1)
	c := s.serve()
	g := newGates()
	g.create.open()
	g.start.open()
	g.config.open()
	startHost(t, hostConfig(t, c.agents, "mini-1", "", c.hostToken("mini-1")), g)
	first := c.one("phase", "standby", "runners")
	if n := len(s.sim.Runners()); n != 0 {
		t.Errorf("%d registrations for a standby", n)
	}
	job := s.queue(macLabels()).JobIDs[0]
	s.delivered()
	c.waiting(fmt.Sprint(job), "assignment", "")
	eventually(t, "another standby has taken its place", func() bool {
		phases := c.list("runners").column("phase")
		slices.Sort(phases)
		return slices.Equal(phases, []string{"idle", "standby"})
	})
	for _, row := range c.list("runners", "--phase", "idle") {
		if row["id"] != first["id"] {
			t.Errorf("runner %v took the job, want the standby %v", row["id"], first["id"])
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := s.sim.WaitJob(ctx, job, func(j githubsim.Job) bool { return j.Status == "queued" }); err != nil {
		t.Fatal(err)
	}
}
