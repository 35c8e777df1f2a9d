// SPDX-License-Identifier: MIT

package store_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func testIngest(t *testing.T, open opener) {
	deliveries := func(w *world) []fleet.DeliverySummary {
		list, _, err := w.s.ListDeliveries(w.ctx(), fleet.DeliveryQuery{})
		w.must(err)
		return list
	}
	t.Run("delivery and job together", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		if got := w.job(1, fleet.ToldQueued, ""); got != (fleet.Ingested{Changed: true}) {
			t.Errorf("%+v", got)
		}
		want := news(1, "", "").Job
		want.State, want.HeardAt, want.QueuedAt, want.ToldAt = fleet.JobQueued, epoch, epoch, epoch
		if diff := cmp.Diff(want, w.jobNow(1)); diff != "" {
			t.Errorf("job (-want +got):\n%s", diff)
		}
		wantD := []fleet.DeliverySummary{{
			GUID: "guid-1", Event: "workflow_job", Action: "queued", Repository: "Acme/App", InstallationID: 5, ReceivedAt: epoch,
			Status: fleet.DeliveryProcessed, Reason: "because", Times: 1,
		}}
		if diff := cmp.Diff(wantD, deliveries(w)); diff != "" {
			t.Errorf("delivery (-want +got):\n%s", diff)
		}
	})
	t.Run("the same GUID counts once", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		in := fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryProcessed), Job: news(1, fleet.ToldQueued, "")}
		_, err := w.s.Ingest(w.ctx(), in)
		w.must(err)
		in.Job = news(1, fleet.ToldCompleted, "") // even if it says something else now
		got, err := w.s.Ingest(w.ctx(), in)
		w.must(err)
		if got != (fleet.Ingested{Duplicate: true}) || w.jobNow(1).State != fleet.JobQueued {
			t.Errorf("%+v, job %s", got, w.jobNow(1).State)
		}
		if d := deliveries(w); len(d) != 1 || d[0].Times != 2 {
			t.Errorf("%+v", d)
		}
	})
	t.Run("an ignored one is not processed again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		in := fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryIgnored)}
		_, err := w.s.Ingest(w.ctx(), in)
		w.must(err)
		in = fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryProcessed), Job: news(1, fleet.ToldQueued, "")}
		if got, err := w.s.Ingest(w.ctx(), in); err != nil || !got.Duplicate {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("a failed one is processed again", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		failed := fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryFailed)}
		for times := range 2 {
			if got, err := w.s.Ingest(w.ctx(), failed); err != nil || got != (fleet.Ingested{}) {
				t.Fatalf("%+v, %v", got, err)
			}
			if d := deliveries(w); d[0].Status != fleet.DeliveryFailed || d[0].Times != times+1 {
				t.Errorf("%+v", d)
			}
		}
		w.Add(time.Hour)
		good := fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryProcessed), Job: news(1, fleet.ToldQueued, "")}
		if got, err := w.s.Ingest(w.ctx(), good); err != nil || got != (fleet.Ingested{Changed: true}) {
			t.Fatalf("%+v, %v", got, err)
		}
		if got, err := w.s.Ingest(w.ctx(), good); err != nil || !got.Duplicate {
			t.Fatalf("%+v, %v", got, err)
		}
		if d := deliveries(w); len(d) != 1 || d[0].Status != fleet.DeliveryProcessed || d[0].Times != 4 || !d[0].ReceivedAt.Equal(epoch) {
			t.Errorf("%+v", d)
		}
	})
	t.Run("many at once, one GUID", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		var (
			wg    sync.WaitGroup
			mu    sync.Mutex
			first int
		)
		for range 16 {
			wg.Go(func() {
				got, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryProcessed), Job: news(1, fleet.ToldQueued, "")})
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					t.Error(err)
				} else if !got.Duplicate {
					first++
				}
			})
		}
		wg.Wait()
		if first != 1 {
			t.Errorf("%d were the first", first)
		}
		if d := deliveries(w); len(d) != 1 || d[0].Times != 16 {
			t.Errorf("%+v", d)
		}
	})
	t.Run("news that changes nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.job(1, fleet.ToldQueued, "")
		w.job(1, fleet.ToldInProgress, "theirs")
		before := w.jobNow(1)
		if got := w.job(1, fleet.ToldQueued, ""); got.Changed {
			t.Error("late news of queued counts as a change")
		}
		if diff := cmp.Diff(before, w.jobNow(1)); diff != "" {
			t.Errorf("%s", diff)
		}
	})
	t.Run("a call that was given up stores nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		ctx, cancel := context.WithCancel(w.ctx())
		cancel()
		if _, err := w.s.Ingest(ctx, fleet.Ingest{Delivery: w.delivery("g", fleet.DeliveryProcessed), Job: news(1, fleet.ToldQueued, "")}); err == nil {
			t.Fatal("stored")
		}
		if len(deliveries(w)) != 0 || len(w.state().Jobs) != 0 {
			t.Error("half of it is there")
		}
	})
	t.Run("a payload is not needed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		d := w.delivery("g", fleet.DeliveryIgnored)
		d.Payload = nil
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: d})
		w.must(err)
	})
	t.Run("runs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for i, status := range []string{"requested", "completed", "in_progress"} {
			in := fleet.Ingest{
				Delivery: w.delivery(fmt.Sprint("r", i), fleet.DeliveryProcessed),
				Run:      &fleet.Run{ID: 9, Attempt: 1, Repository: "Acme/App", Event: "push", Status: status, Fork: i == 0, Actor: "someone"},
			}
			if got, err := w.s.Ingest(w.ctx(), in); err != nil || got.Changed != (i < 2) { // completed stays so
				t.Errorf("%s: %+v, %v", status, got, err)
			}
		}
	})
	t.Run("learned without a delivery", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.must(w.s.Learn(w.ctx(), *news(3, fleet.SeenQueued, "")))
		if w.jobNow(3).State != fleet.JobQueued || len(deliveries(w)) != 0 {
			t.Errorf("%+v", w.jobNow(3))
		}
		w.must(w.s.Learn(w.ctx(), *news(4, "no such event", "")))
		if _, ok, err := w.s.Job(w.ctx(), 4); ok || err != nil {
			t.Errorf("a job of no state is stored: %t, %v", ok, err)
		}
	})
	t.Run("unusual labels and names", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		n := news(1, fleet.ToldQueued, "")
		n.Job.Labels = fleet.NewLabels("a,b", "with space", "ünï", `"quoted"`)
		n.Job.Name = strings.Repeat("x", 5000) + "'; DROP TABLE jobs; --\x00"
		w.must(w.s.Learn(w.ctx(), *n))
		got := w.jobNow(1)
		if !slices.Equal(got.Labels, n.Job.Labels) || got.Name != n.Job.Name {
			t.Errorf("labels %q, name of %d bytes", got.Labels, len(got.Name))
		}
		n.Job.ID, n.Job.Labels = 2, nil
		w.must(w.s.Learn(w.ctx(), *n))
		if got := w.jobNow(2); len(got.Labels) != 0 {
			t.Errorf("labels %q", got.Labels)
		}
	})
}

func testInstallations(t *testing.T, open opener) {
	w := newWorld(t, open)
	known := func(id int64, want bool) {
		t.Helper()
		if got, err := w.s.KnownInstallation(w.ctx(), id); err != nil || got != want {
			t.Errorf("installation %d known: %t, %v; want %t", id, got, err, want)
		}
	}
	known(5, true) // nothing is known yet: every one passes
	w.must(w.s.SetInstallations(w.ctx(), []fleet.Installation{{ID: 5, Account: "Acme"}, {ID: 6, Account: "Beta", Suspended: true}}, nil))
	known(5, true)
	known(6, true)
	known(7, false)
	tell := func(guid string, i fleet.Installation) {
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery(guid, fleet.DeliveryProcessed), Installation: &i})
		w.must(err)
	}
	tell("i1", fleet.Installation{ID: 7, Account: "Gamma"})
	known(7, true)
	tell("i2", fleet.Installation{ID: 7, Account: "Gamma", Deleted: true})
	known(7, false)
	before, err := w.s.InstallationIDs(w.ctx())
	w.must(err)
	if diff := cmp.Diff([]int64{5, 6}, before); diff != "" {
		t.Errorf("known (-want +got):\n%s", diff)
	}
	// One list that lacked some by mistake is mended by the next.
	w.must(w.s.SetInstallations(w.ctx(), []fleet.Installation{{ID: 5, Account: "Acme"}}, before))
	known(6, false)
	w.must(w.s.SetInstallations(w.ctx(), []fleet.Installation{{ID: 5, Account: "Acme"}, {ID: 6, Account: "Beta"}}, nil))
	known(6, true)
	// What a delivery told after the list was asked for is not taken back by it.
	tell("i3", fleet.Installation{ID: 8, Account: "Delta"})
	w.must(w.s.SetInstallations(w.ctx(), nil, before))
	known(5, false)
	known(8, true)
}

// testBind tries every order of what GitHub and the answer to the mint tell.
func testBind(t *testing.T, open opener) {
	t.Run("every order", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 1000)
		steps := []string{"granted", "started", "started", "completed"}
		job := fleet.JobID(0)
		permute(len(steps), func(order []int) {
			job++
			name := fmt.Sprintf("mf-%d", job)
			id := w.armed(h, job)
			m, err := w.s.BeginMint(w.ctx(), h, id, name)
			w.must(err)
			var told []string
			for _, i := range order {
				told = append(told, steps[i])
				switch steps[i] {
				case "granted":
					w.must(w.s.Granted(w.ctx(), id, m.Attempt, int64(job)))
				case "started":
					w.job(job, fleet.ToldInProgress, name)
				case "completed":
					w.job(job, fleet.ToldCompleted, name)
				}
				r := w.runner(id)
				heard := slices.Contains(told, "started") || slices.Contains(told, "completed")
				if (r.Job == job) != heard {
					t.Errorf("after %v: bound to %d", told, r.Job)
				}
				if over := slices.Contains(told, "completed"); r.JobDone != over {
					t.Errorf("after %v: done %t", told, r.JobDone)
				}
				if heard && !slices.Contains(told, "completed") && r.Registration != fleet.RegBusy {
					t.Errorf("after %v: registration %q", told, r.Registration)
				}
			}
			// Whether the registration went with the job, the guest says.
			if r := w.runner(id); r.Registration != fleet.RegBusy || r.GitHubID != int64(job) || r.RunnerName != name {
				t.Errorf("after %v: %q, id %d, name %q", told, r.Registration, r.GitHubID, r.RunnerName)
			}
		})
	})
	t.Run("somebody else's runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(1, fleet.ToldInProgress, "other")
		if r := w.runner(id); r.Job != 0 || r.Registration != fleet.RegMinted || w.jobNow(1).RunnerName != "other" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("names are compared exactly", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(1, fleet.ToldInProgress, "MF-1")
		if r := w.runner(id); r.Job != 0 {
			t.Errorf("bound to %d", r.Job)
		}
	})
	t.Run("any job, not the one it was armed for", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(2, fleet.ToldQueued, "")
		w.job(2, fleet.ToldInProgress, "mf-1")
		if r := w.runner(id); r.Job != 2 || w.jobNow(1).State != fleet.JobQueued {
			t.Errorf("bound to %d", r.Job)
		}
	})
	t.Run("another registration of the same name", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1") // GitHub gave it the id 1001
		foreign := news(1, fleet.ToldInProgress, "mf-1")
		foreign.Job.RunnerID = 5
		w.must(w.s.Learn(w.ctx(), *foreign))
		elsewhere := news(2, fleet.ToldInProgress, "mf-1")
		elsewhere.Job.Repo = "Other"
		w.must(w.s.Learn(w.ctx(), *elsewhere))
		if r := w.runner(id); r.Job != 0 || r.Registration != fleet.RegMinted {
			t.Errorf("%+v", r)
		}
		ours := news(3, fleet.ToldInProgress, "mf-1")
		ours.Job.RunnerID = 1001
		w.must(w.s.Learn(w.ctx(), *ours))
		if r := w.runner(id); r.Job != 3 {
			t.Errorf("%+v", r)
		}
	})
	t.Run("one runner, one job", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(1, fleet.ToldInProgress, "mf-1")
		w.job(2, fleet.ToldInProgress, "mf-1")
		w.job(2, fleet.ToldCompleted, "mf-1")
		if r := w.runner(id); r.Job != 1 || r.JobDone {
			t.Errorf("%+v", r)
		}
	})
	t.Run("cancelled before any runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(1, fleet.ToldCompleted, "")
		if r := w.runner(id); r.Job != 0 || r.JobDone {
			t.Errorf("%+v", r)
		}
	})
	t.Run("GitHub took the job back", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		first, second := w.minted(h, 1, "mf-1"), w.minted(h, 2, "mf-2")
		w.job(1, fleet.ToldInProgress, "mf-1")
		w.must(w.s.Learn(w.ctx(), *news(1, fleet.SeenQueued, "")))
		if r := w.runner(first); r.Job != 0 || r.JobDone {
			t.Errorf("still bound: %+v", r)
		}
		if j := w.jobNow(1); j.State != fleet.JobQueued || j.RunnerName != "" {
			t.Errorf("job %+v", j)
		}
		w.job(1, fleet.ToldInProgress, "mf-2")
		w.job(1, fleet.ToldCompleted, "mf-2")
		if r := w.runner(second); r.Job != 1 || !r.JobDone {
			t.Errorf("%+v", r)
		}
		w.job(1, fleet.ToldInProgress, "mf-1") // a very late delivery
		if r := w.runner(first); r.Job != 0 || r.JobDone {
			t.Errorf("a late delivery bound the wrong runner: %+v", r)
		}
	})
	t.Run("moved to another runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 3)
		first, second := w.minted(h, 1, "mf-1"), w.minted(h, 2, "mf-2")
		w.job(1, fleet.ToldInProgress, "mf-1")
		w.must(w.s.Learn(w.ctx(), *news(1, fleet.SeenInProgress, "mf-2")))
		if a, b := w.runner(first), w.runner(second); a.Job != 0 || b.Job != 1 {
			t.Errorf("first bound to %d, second to %d", a.Job, b.Job)
		}
	})
	t.Run("the timeline tells", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.Add(time.Second)
		w.job(1, fleet.ToldInProgress, "mf-1")
		tl, err := w.s.Timeline(w.ctx(), id)
		w.must(err)
		last := tl[len(tl)-1]
		if last.Phase != fleet.PhaseBusy || !strings.Contains(last.Detail, "job-1") || !last.At.Equal(w.Now()) {
			t.Errorf("%+v", last)
		}
		var phases []fleet.Phase
		for _, m := range tl {
			phases = append(phases, m.Phase)
		}
		if diff := cmp.Diff([]fleet.Phase{"placed", "standby", "armed", "registering", "busy"}, phases); diff != "" {
			t.Errorf("%s", diff)
		}
	})
}

func testFailedDeliveries(t *testing.T, open opener) {
	w := newWorld(t, open)
	add := func(guid string, installation int64, status fleet.DeliveryStatus) {
		w.Add(time.Second)
		d := w.delivery(guid, status)
		d.InstallationID = installation
		_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: d})
		w.must(err)
	}
	guids := func() (out []string) {
		list, err := w.s.FailedDeliveries(w.ctx())
		w.must(err)
		for _, d := range list {
			out = append(out, d.GUID)
			if string(d.Payload) != `{"a":1}` || d.Status != fleet.DeliveryFailed || d.Event != "workflow_job" {
				t.Errorf("%+v", d)
			}
		}
		return out
	}
	add("z-first", 7, fleet.DeliveryFailed)
	add("a-second", 7, fleet.DeliveryFailed)
	add("foreign", 8, fleet.DeliveryFailed)
	add("good", 7, fleet.DeliveryProcessed)
	if got := guids(); len(got) != 0 {
		t.Errorf("of an installation that is not known: %q", got)
	}
	w.must(w.s.SetInstallations(w.ctx(), []fleet.Installation{{ID: 7, Account: "Acme"}}, nil))
	if diff := cmp.Diff([]string{"z-first", "a-second"}, guids()); diff != "" {
		t.Errorf("%s", diff)
	}
	add("z-first", 7, fleet.DeliveryProcessed)
	if diff := cmp.Diff([]string{"a-second"}, guids()); diff != "" {
		t.Errorf("%s", diff)
	}
}

func permute(n int, f func([]int)) {
	order := make([]int, 0, n)
	var step func()
	step = func() {
		if len(order) == n {
			f(order)
			return
		}
		for i := range n {
			if !slices.Contains(order, i) {
				order = append(order, i)
				step()
				order = order[:len(order)-1]
			}
		}
	}
	step()
}
