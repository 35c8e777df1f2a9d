// SPDX-License-Identifier: MIT

package store_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// pages reads a listing to its end, with something happening between the pages.
func pages[T any, K comparable](w *world, size int, list func(fleet.Page) ([]T, string, error), key func(T) K, between func()) []K {
	w.Helper()
	var out []K
	p := fleet.Page{Limit: size}
	for {
		rows, next, err := list(p)
		w.must(err)
		if len(rows) > size || (next != "" && len(rows) < size) {
			w.Errorf("a page of %d rows, cursor %q", len(rows), next)
		}
		for _, r := range rows {
			if slices.Contains(out, key(r)) {
				w.Errorf("%v stands twice", key(r))
			}
			out = append(out, key(r))
		}
		if next == "" {
			return out
		}
		p.Cursor = next
		between()
	}
}

func testPaging(t *testing.T, open opener) {
	t.Run("jobs", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		var want []fleet.JobID
		for i := fleet.JobID(1); i <= 10; i++ {
			w.job(i*10, fleet.ToldQueued, "")
			want = append([]fleet.JobID{i * 10}, want...)
		}
		for _, size := range []int{1, 3, 5, 10, 11} {
			newer := fleet.JobID(1000 * size)
			got := pages(w, size, func(p fleet.Page) ([]fleet.Job, string, error) {
				return w.s.ListJobs(w.ctx(), fleet.JobQuery{Page: p})
			}, func(j fleet.Job) fleet.JobID { return j.ID }, func() { newer++; w.job(newer, fleet.ToldQueued, "") })
			got = slices.DeleteFunc(got, func(id fleet.JobID) bool { return id > 100 })
			if diff := cmp.Diff(want, got); diff != "" && size <= 10 {
				t.Errorf("pages of %d (-want +got):\n%s", size, diff)
			}
		}
	})
	t.Run("runners made at the same moment", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 100)
		var want []fleet.RunnerID
		for i := range 9 {
			if i%3 == 0 {
				w.Add(time.Second)
			}
			want = append(want, w.place(h))
		}
		w.Add(time.Second)
		got := pages(w, 2, func(p fleet.Page) ([]fleet.Runner, string, error) {
			return w.s.ListRunners(w.ctx(), fleet.RunnerQuery{Page: p})
		}, func(r fleet.Runner) fleet.RunnerID { return r.ID }, func() { w.place(h) })
		slices.Sort(got)
		slices.Sort(want)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("hosts", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for _, n := range []string{"m1", "b", "z", "m10", "a", "m2"} {
			w.host(n, 1)
		}
		once := func() {
			if w.guid++; w.guid == 1 {
				w.host("a0", 1) // before the page that was read: not shown, and nothing twice
				w.host("zz", 1)
			}
		}
		got := pages(w, 2, func(p fleet.Page) ([]fleet.Host, string, error) {
			return w.s.ListHosts(w.ctx(), fleet.HostQuery{Page: p})
		}, func(h fleet.Host) string { return h.Name }, once)
		if diff := cmp.Diff([]string{"a", "b", "m1", "m10", "m2", "z", "zz"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("deliveries", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		add := func(guid string, status fleet.DeliveryStatus) {
			_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery(guid, status)})
			w.must(err)
		}
		for i := range 12 {
			if i%4 == 0 {
				w.Add(time.Second)
			}
			add(fmt.Sprintf("g%02d", i), []fleet.DeliveryStatus{fleet.DeliveryProcessed, fleet.DeliveryFailed}[i%2])
		}
		w.Add(time.Second)
		for status, n := range map[fleet.DeliveryStatus]int{"": 12, fleet.DeliveryFailed: 6, fleet.DeliveryIgnored: 0} {
			i := 0
			got := pages(w, 5, func(p fleet.Page) ([]fleet.DeliverySummary, string, error) {
				return w.s.ListDeliveries(w.ctx(), fleet.DeliveryQuery{Page: p, Status: status})
			}, func(d fleet.DeliverySummary) string { return d.GUID }, func() { i++; add(fmt.Sprintf("new-%s-%d", status, i), fleet.DeliveryProcessed) })
			got = slices.DeleteFunc(got, func(g string) bool { return g[0] != 'g' })
			if len(got) != n || !slices.IsSortedFunc(got, func(a, b string) int { return -cmpString(a, b) }) {
				t.Errorf("status %q: %q", status, got)
			}
		}
	})
	t.Run("limits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for i := fleet.JobID(1); i <= 105; i++ {
			w.must(w.s.Learn(w.ctx(), *news(i, fleet.ToldQueued, "")))
		}
		for limit, want := range map[int]int{0: 100, -5: 100, 7: 7, 5000: 105} {
			rows, _, err := w.s.ListJobs(w.ctx(), fleet.JobQuery{Page: fleet.Page{Limit: limit}})
			if err != nil || len(rows) != want {
				t.Errorf("limit %d: %d rows, %v", limit, len(rows), err)
			}
		}
	})
	t.Run("cursors that no listing gave", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for _, c := range []string{"%%%", "x", base64.RawURLEncoding.EncodeToString([]byte("12")), base64.RawURLEncoding.EncodeToString([]byte("abc def")), "' OR 1=1"} {
			p := fleet.Page{Cursor: c}
			_, _, err := w.s.ListJobs(w.ctx(), fleet.JobQuery{Page: p})
			w.wantErr(err, fleet.ErrCursor)
			_, _, err = w.s.ListRunners(w.ctx(), fleet.RunnerQuery{Page: p})
			w.wantErr(err, fleet.ErrCursor)
			_, _, err = w.s.ListHosts(w.ctx(), fleet.HostQuery{Page: p})
			w.wantErr(err, fleet.ErrCursor)
			_, _, err = w.s.ListDeliveries(w.ctx(), fleet.DeliveryQuery{Page: p})
			w.wantErr(err, fleet.ErrCursor)
		}
	})
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func testQueries(t *testing.T, open opener) {
	w := newWorld(t, open)
	a, b := w.host("a", 5), w.host("b", 5)
	onA, onB := w.standby(a), w.standby(b)
	over := w.standby(a)
	w.report(a, w.others(a, said(over, fleet.ObservedGone))...)
	w.job(1, fleet.ToldQueued, "")
	w.job(2, fleet.ToldInProgress, "x")
	other := news(3, fleet.ToldCompleted, "")
	other.Job.Owner, other.Job.Repo, other.Job.RunID = "Beta", "Lib", 30
	w.must(w.s.Learn(w.ctx(), *other))

	t.Run("jobs", func(t *testing.T) {
		for name, c := range map[string]struct {
			q    fleet.JobQuery
			want []fleet.JobID
		}{
			"all":                 {fleet.JobQuery{}, []fleet.JobID{3, 2, 1}},
			"one state":           {fleet.JobQuery{States: []fleet.JobState{"queued"}}, []fleet.JobID{1}},
			"two states":          {fleet.JobQuery{States: []fleet.JobState{"queued", "completed"}}, []fleet.JobID{3, 1}},
			"repository":          {fleet.JobQuery{Repository: "ACME/app"}, []fleet.JobID{2, 1}},
			"run":                 {fleet.JobQuery{RunID: 20}, []fleet.JobID{2}},
			"state and run":       {fleet.JobQuery{RunID: 20, States: []fleet.JobState{"queued"}}, nil},
			"state and repo":      {fleet.JobQuery{Repository: "beta/lib", States: []fleet.JobState{"queued", "completed"}}, []fleet.JobID{3}},
			"a wild card is none": {fleet.JobQuery{Repository: "%"}, nil},
		} {
			rows, next, err := w.s.ListJobs(w.ctx(), c.q)
			w.must(err)
			var got []fleet.JobID
			for _, j := range rows {
				got = append(got, j.ID)
			}
			if diff := cmp.Diff(c.want, got); diff != "" || next != "" {
				t.Errorf("%s: cursor %q\n%s", name, next, diff)
			}
		}
		if _, ok, err := w.s.Job(w.ctx(), 404); ok || err != nil {
			t.Errorf("%t, %v", ok, err)
		}
	})
	t.Run("runners", func(t *testing.T) {
		for name, c := range map[string]struct {
			q    fleet.RunnerQuery
			want []fleet.RunnerID
		}{
			"live":         {fleet.RunnerQuery{}, []fleet.RunnerID{onA, onB}},
			"all":          {fleet.RunnerQuery{All: true}, []fleet.RunnerID{onA, onB, over}},
			"host":         {fleet.RunnerQuery{Host: b}, []fleet.RunnerID{onB}},
			"host and all": {fleet.RunnerQuery{Host: a, All: true}, []fleet.RunnerID{onA, over}},
			"pool":         {fleet.RunnerQuery{Pool: "mac"}, []fleet.RunnerID{onA, onB}},
			"other pool":   {fleet.RunnerQuery{Pool: "linux"}, nil},
		} {
			rows, _, err := w.s.ListRunners(w.ctx(), c.q)
			w.must(err)
			var got []fleet.RunnerID
			for _, r := range rows {
				got = append(got, r.ID)
			}
			slices.Sort(got)
			slices.Sort(c.want)
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("%s:\n%s", name, diff)
			}
		}
	})
	t.Run("the runners of a job", func(t *testing.T) {
		w := newWorld(t, open)
		id := w.minted(w.host("a", 2), 1, "mf-1")
		w.job(1, fleet.ToldInProgress, "mf-1")
		for job, want := range map[fleet.JobID]int{1: 1, 2: 0} {
			rows, _, err := w.s.ListRunners(w.ctx(), fleet.RunnerQuery{Job: job, All: true})
			w.must(err)
			if len(rows) != want || want == 1 && rows[0].ID != id {
				t.Errorf("of job %d: %+v", job, rows)
			}
		}
	})
	t.Run("counts", func(t *testing.T) {
		counts, err := w.s.RunnerCounts(w.ctx())
		w.must(err)
		if diff := cmp.Diff(map[string]map[fleet.Phase]int{"mac": {fleet.PhaseStandby: 2}}, counts); diff != "" {
			t.Error(diff)
		}
		taken, err := w.s.SlotsTaken(w.ctx())
		w.must(err)
		if diff := cmp.Diff(map[fleet.HostID]int{a: 1, b: 1}, taken); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a timeline of nobody", func(t *testing.T) {
		if tl, err := w.s.Timeline(w.ctx(), "r-none"); err != nil || len(tl) != 0 {
			t.Errorf("%v, %v", tl, err)
		}
	})
}

func testState(t *testing.T, open opener) {
	w := newWorld(t, open)
	h := w.host("b", 9)
	w.host("a", 1)
	// Demand in the order of its age, whatever the ids say.
	w.job(9, fleet.ToldQueued, "")
	w.Add(time.Second)
	w.job(4, fleet.ToldQueued, "")
	w.job(3, fleet.ToldQueued, "")
	w.job(5, fleet.ToldWaiting, "")
	w.job(6, fleet.ToldInProgress, "x")
	jobs, err := w.s.OpenJobs(w.ctx())
	w.must(err)
	if diff := cmp.Diff(map[fleet.JobState]int{fleet.JobQueued: 3, fleet.JobWaiting: 1, fleet.JobInProgress: 1}, jobs); diff != "" {
		t.Error(diff)
	}
	w.job(7, fleet.ToldCompleted, "x")
	st := w.state()
	var ids []fleet.JobID
	for _, j := range st.Jobs {
		ids = append(ids, j.ID)
	}
	if diff := cmp.Diff([]fleet.JobID{9, 3, 4}, ids); diff != "" {
		t.Errorf("demand:\n%s", diff)
	}
	if len(st.Hosts) != 2 || st.Hosts[0].Name != "a" || len(st.Pools) != 0 || len(st.Mints) != 0 {
		t.Errorf("%+v", st)
	}

	t.Run("registrations of the last minute", func(t *testing.T) {
		first := w.Add(time.Minute)
		w.minted(h, 20, "mf-20")
		w.Add(30 * time.Second)
		w.minted(h, 21, "mf-21")
		if diff := cmp.Diff(map[string]fleet.MintUse{"acme": {Begun: []time.Time{first, first.Add(30 * time.Second)}}}, w.state().Mints); diff != "" {
			t.Errorf("%s", diff)
		}
		w.Add(30 * time.Second) // the first is a minute old now
		if use := w.state().Mints["acme"]; len(use.Begun) != 1 {
			t.Errorf("%+v", use)
		}
		w.Add(30 * time.Second)
		if use := w.state().Mints; len(use) != 0 {
			t.Errorf("%+v", use)
		}
	})
	t.Run("ping", func(t *testing.T) { w.must(w.s.Ping(w.ctx())) })
}

func testPrune(t *testing.T, open opener) {
	const day = 24 * time.Hour
	keep := store.Retention{Payloads: 7 * day, History: 30 * day}
	count := func(w *world, query string) (n int) {
		w.Helper()
		w.must(w.s.Pools()["read"].QueryRowContext(w.ctx(), query).Scan(&n))
		return n
	}
	fill := func(t *testing.T) (w *world, past, stays fleet.RunnerID) {
		w = newWorld(t, open)
		h := w.host("a", 9)
		past = w.minted(h, 1, "mf-past")
		w.job(1, fleet.ToldCompleted, "mf-past")
		ended := said(past, fleet.ObservedGone)
		ended.Result = "succeeded"
		w.report(h, ended)
		stays = w.minted(h, 2, "mf-stays")
		w.job(3, fleet.ToldQueued, "")
		run := func(attempt int) {
			w.guid++
			_, err := w.s.Ingest(w.ctx(), fleet.Ingest{
				Delivery: w.delivery(fmt.Sprint("run-", w.guid), fleet.DeliveryProcessed), Run: &fleet.Run{ID: 1, Attempt: attempt, Status: "completed"},
			})
			w.must(err)
		}
		run(1)
		w.Add(20 * day)
		run(2)
		return w, past, stays
	}
	t.Run("in two steps of age", func(t *testing.T) {
		t.Parallel()
		w, past, stays := fill(t)
		deliveries := count(w, `SELECT COUNT(*) FROM deliveries`)
		w.must(w.s.Prune(w.ctx(), keep))
		if n := count(w, `SELECT COUNT(*) FROM deliveries`); n != deliveries {
			t.Errorf("%d deliveries of %d are left", n, deliveries)
		}
		if n := count(w, `SELECT COUNT(*) FROM deliveries WHERE payload IS NOT NULL`); n != 1 {
			t.Errorf("%d payloads are left, want the young one", n)
		}
		w.runner(past)
		w.Add(11 * day)
		w.must(w.s.Prune(w.ctx(), keep))
		if _, ok, _ := w.s.Runner(w.ctx(), past); ok {
			t.Error("a runner of the past is left")
		}
		if n := count(w, `SELECT COUNT(*) FROM moments WHERE runner NOT IN (SELECT id FROM runners)`); n != 0 {
			t.Errorf("%d moments of runners that are deleted", n)
		}
		w.runner(stays)
		if tl, err := w.s.Timeline(w.ctx(), stays); err != nil || len(tl) == 0 {
			t.Errorf("the timeline of a live runner: %v, %v", tl, err)
		}
		if n := count(w, `SELECT COUNT(*) FROM mints`); n != 1 {
			t.Errorf("%d names, want that of the live runner", n)
		}
		if _, ok, _ := w.s.Job(w.ctx(), 1); ok {
			t.Error("a completed job is left")
		}
		for _, id := range []fleet.JobID{2, 3} {
			w.jobNow(id)
		}
		if n := count(w, `SELECT COUNT(*) FROM deliveries`); n != 1 {
			t.Errorf("%d deliveries, want the young one", n)
		}
		if n := count(w, `SELECT COUNT(*) FROM runs WHERE attempt = 2`); n != 1 || count(w, `SELECT COUNT(*) FROM runs`) != 1 {
			t.Errorf("%d young attempts of a run are left", n)
		}
		// A job that is bound by the name of the runner that lives on.
		w.job(2, fleet.ToldInProgress, "mf-stays")
		if w.runner(stays).Job != 2 {
			t.Error("its name is forgotten")
		}
	})
	t.Run("more than one step", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		for i := range fleet.JobID(1203) {
			w.must(w.s.Learn(w.ctx(), *news(i+1, fleet.ToldCompleted, "")))
		}
		w.Add(31 * day)
		w.must(w.s.Prune(w.ctx(), keep))
		if n := count(w, `SELECT COUNT(*) FROM jobs`); n != 0 {
			t.Errorf("%d are left", n)
		}
	})
	t.Run("zero keeps for ever", func(t *testing.T) {
		t.Parallel()
		w, past, _ := fill(t)
		w.Add(1000 * day)
		w.must(w.s.Prune(w.ctx(), store.Retention{}))
		w.runner(past)
		w.jobNow(1)
		if n := count(w, `SELECT COUNT(*) FROM deliveries WHERE payload IS NULL`); n != 0 {
			t.Errorf("%d payloads are gone", n)
		}
	})
}
