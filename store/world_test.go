// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

const live = time.Minute

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// clock is a time that only the test moves.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) Add(d time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
	return c.t
}

// opener makes an empty store whose time is now.
type opener func(t *testing.T, now func() time.Time) *store.Store

// world is a store with short ways to say what happens to it.
type world struct {
	*testing.T
	*clock
	s        *store.Store
	guid     int
	sequence map[fleet.HostID]int64
}

func newWorld(t *testing.T, open opener) *world {
	t.Helper()
	c := &clock{t: epoch}
	w := &world{T: t, clock: c, s: open(t, c.Now), sequence: map[fleet.HostID]int64{}}
	t.Cleanup(w.mirrored)
	return w
}

// mirrored checks at the end of each test that what is in memory is what the database
// has, unless the test has closed the store.
func (w *world) mirrored() {
	ctx := context.WithoutCancel(w.T.Context())
	got, err := w.s.State(ctx)
	if err != nil {
		return
	}
	want, desired, err := w.s.Reread(ctx)
	w.must(err)
	// Not of a decision's concern, and the newest of it is in memory alone.
	ignored := cmpopts.IgnoreFields(fleet.Host{}, "Revision", "Sequence", "SeenAt", "Instance", "Cached")
	if diff := cmp.Diff(want, got, ignored, cmpopts.EquateEmpty()); diff != "" {
		w.Errorf("in memory is not what is in the database (-database +memory):\n%s", diff)
	}
	since := w.Now().Add(-10 * time.Minute)
	gotJobs, gotRunners, err := w.s.Unsettled(ctx, "acme", since)
	w.must(err)
	wantJobs, wantRunners, err := w.s.UnsettledReread(ctx, "acme", since)
	w.must(err)
	if diff := cmp.Diff(wantJobs, gotJobs, cmpopts.EquateEmpty()) + cmp.Diff(wantRunners, gotRunners, cmpopts.EquateEmpty()); diff != "" {
		w.Errorf("unsettled in memory is not what is in the database (-database +memory):\n%s", diff)
	}
	for host, list := range desired {
		d, err := w.s.Desired(ctx, host)
		w.must(err)
		if diff := cmp.Diff(list, d.Runners, cmpopts.EquateEmpty()); diff != "" {
			w.Errorf("what is wanted of host %s (-database +memory):\n%s", host, diff)
		}
	}
}

func (w *world) ctx() context.Context { return w.T.Context() }

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) wantErr(err, want error) {
	w.Helper()
	if !errors.Is(err, want) {
		w.Errorf("got error %v, want %v", err, want)
	}
}

func facts(slots int) fleet.HostFacts {
	return fleet.HostFacts{Slots: slots, Backends: []string{"process"}, Images: []string{"sonoma"}, OS: "linux", Arch: "arm64", AgentVersion: "1"}
}

// host enrols a host and lets its first agent say hello.
func (w *world) host(name string, slots int) fleet.HostID {
	w.Helper()
	w.must(w.s.AddEnrolment(w.ctx(), fleet.Enrolment{TokenHash: "token-" + name, ExpiresAt: w.Now().Add(time.Hour)}, 1))
	h, err := w.s.Enrol(w.ctx(), "token-"+name, "credential-"+name, name, "machine-"+name)
	w.must(err)
	w.must(w.s.Hello(w.ctx(), h.ID, "agent-1", "machine-"+name, facts(slots), live))
	return h.ID
}

func (w *world) hostNow(id fleet.HostID) fleet.Host {
	w.Helper()
	hosts, _, err := w.s.ListHosts(w.ctx(), fleet.HostQuery{})
	w.must(err)
	for _, h := range hosts {
		if h.ID == id {
			return h
		}
	}
	w.Fatalf("no host %s", id)
	return fleet.Host{}
}

// report sends the next report of the host's first agent.
func (w *world) report(h fleet.HostID, runners ...fleet.RunnerReport) {
	w.Helper()
	w.sequence[h]++
	w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: w.sequence[h], Facts: w.factsOf(h), Runners: runners}, live))
}

func (w *world) factsOf(h fleet.HostID) fleet.HostFacts {
	now := w.hostNow(h)
	return facts(now.Slots)
}

func said(id fleet.RunnerID, o fleet.Observed) fleet.RunnerReport {
	return fleet.RunnerReport{ID: id, Observed: o, HoldsSlot: o != fleet.ObservedGone, Pool: "mac"}
}

func (w *world) carry(p fleet.Plan) fleet.Carried {
	w.Helper()
	done, err := w.s.Carry(w.ctx(), p)
	w.must(err)
	return done
}

// place puts a runner of pool mac on the host.
func (w *world) place(h fleet.HostID) fleet.RunnerID {
	w.Helper()
	done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: "mac", Host: h, Reason: "test"}}})
	if len(done.Placed) != 1 {
		w.Fatalf("not placed: %+v", done)
	}
	return done.Placed[0]
}

// standby places a runner and lets its guest answer.
func (w *world) standby(h fleet.HostID) fleet.RunnerID {
	w.Helper()
	id := w.place(h)
	w.report(h, w.others(h, said(id, fleet.ObservedStandby))...)
	return id
}

// others completes a full report: all runners of the host as they are, with these
// in their place.
func (w *world) others(h fleet.HostID, changed ...fleet.RunnerReport) []fleet.RunnerReport {
	w.Helper()
	list, _, err := w.s.ListRunners(w.ctx(), fleet.RunnerQuery{Host: h})
	w.must(err)
	for _, r := range list {
		known := slices.ContainsFunc(changed, func(c fleet.RunnerReport) bool { return c.ID == r.ID })
		if !known && r.Observed != fleet.ObservedNone {
			changed = append(changed, fleet.RunnerReport{ID: r.ID, Observed: r.Observed, HoldsSlot: r.HoldsSlot, HasConfig: r.HasConfig, Pool: r.Pool})
		}
	}
	return changed
}

var acme = fleet.Scope{Owner: "Acme", Repo: "App"}

// armed brings a runner as far as a grant, for a job of its own.
func (w *world) armed(h fleet.HostID, job fleet.JobID) fleet.RunnerID {
	w.Helper()
	id := w.standby(h)
	w.job(job, fleet.ToldQueued, "")
	done := w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: job}}})
	if done.Done != 1 {
		w.Fatalf("not armed: %+v", done)
	}
	return id
}

// minted brings a runner as far as a registration of the name.
func (w *world) minted(h fleet.HostID, job fleet.JobID, name string) fleet.RunnerID {
	w.Helper()
	id := w.armed(h, job)
	m, err := w.s.BeginMint(w.ctx(), h, id, name)
	w.must(err)
	w.must(w.s.Granted(w.ctx(), id, m.Attempt, 1000+int64(job)))
	return id
}

// job delivers news of a job.
func (w *world) job(id fleet.JobID, e fleet.JobEvent, runner string) fleet.Ingested {
	w.Helper()
	w.guid++
	got, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery(fmt.Sprintf("guid-%d", w.guid), fleet.DeliveryProcessed), Job: news(id, e, runner)})
	w.must(err)
	return got
}

func (w *world) delivery(guid string, status fleet.DeliveryStatus) fleet.Delivery {
	return fleet.Delivery{
		GUID: guid, Event: "workflow_job", Action: "queued", InstallationID: 5, Repository: "Acme/App",
		Payload: []byte(`{"a":1}`), ReceivedAt: w.Now(), Status: status, Reason: "because",
	}
}

func news(id fleet.JobID, e fleet.JobEvent, runner string) *fleet.JobNews {
	n := &fleet.JobNews{Event: e, Job: fleet.Job{
		ID: id, RunID: int64(id) * 10, RunAttempt: 1, InstallationID: 5, Owner: "Acme", Repo: "App", Workflow: "ci", Name: fmt.Sprintf("job-%d", id),
		Labels: fleet.NewLabels("macos", "arm64"), RunnerName: runner, URL: "https://example.test/job", CreatedAt: epoch,
	}}
	if e == fleet.ToldCompleted || e == fleet.SeenCompleted {
		n.Job.Conclusion = "success"
	}
	return n
}

func (w *world) jobNow(id fleet.JobID) fleet.Job {
	w.Helper()
	j, ok, err := w.s.Job(w.ctx(), id)
	w.must(err)
	if !ok {
		w.Fatalf("no job %d", id)
	}
	return j
}

func (w *world) runner(id fleet.RunnerID) fleet.Runner {
	w.Helper()
	r, ok, err := w.s.Runner(w.ctx(), id)
	w.must(err)
	if !ok {
		w.Fatalf("no runner %s", id)
	}
	return r
}

func (w *world) desired(h fleet.HostID) fleet.Desired {
	w.Helper()
	d, err := w.s.Desired(w.ctx(), h)
	w.must(err)
	return d
}

func (w *world) state() fleet.State {
	w.Helper()
	st, err := w.s.State(w.ctx())
	w.must(err)
	return st
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
