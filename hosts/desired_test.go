// SPDX-License-Identifier: MIT

package hosts_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
)

func (a *agent) desired(revision string, wait int) (protocol.Desired, answer) {
	a.Helper()
	var out protocol.Desired
	got := a.do(http.MethodGet, fmt.Sprintf("%s?instance=%s&revision=%s&wait=%d", protocol.PathDesired, a.instance, revision, wait), a.credential, nil, &out)
	return out, got
}

func TestDesiredAnswersAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 5)
	a.place()
	now, _ := a.desired("", 0)
	for name, revision := range map[string]string{
		"none": "", "unknown": "x", "older": "0", "newer than ours": "99999", "negative": "-1", "too large to read": strings.Repeat("9", 30),
	} {
		// With the longest wait, so that an answer that waits runs into the deadline.
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		got, err := w.call(ctx, http.MethodGet, fmt.Sprintf("%s?instance=%s&revision=%s&wait=30", protocol.PathDesired, a.instance, revision), a.credential, nil)
		cancel()
		if err != nil || got.status != http.StatusOK {
			t.Errorf("%s: %d, %v", name, got.status, err)
		}
	}
	same, got := a.desired(fmt.Sprint(now.Revision), 0)
	if diff := cmp.Diff(now, same); diff != "" {
		t.Errorf("without a wait the present state is said again:\n%s", diff)
	}
	if got.header.Get("Content-Type") != "application/json" || got.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%v", got.header)
	}
}

func TestDesiredWaits(t *testing.T) {
	t.Parallel()
	type result struct {
		d   protocol.Desired
		got answer
	}
	ask := func(a *agent, revision int64, wait int) chan result {
		for len(a.s.watched) > 0 {
			<-a.s.watched
		}
		out := make(chan result, 1)
		go func() {
			d, got := a.desired(fmt.Sprint(revision), wait)
			out <- result{d, got}
		}()
		select {
		case <-a.s.watched:
		case <-time.After(patience):
			t.Error("nobody waits")
		}
		return out
	}
	await := func(t *testing.T, out chan result) result {
		t.Helper()
		select {
		case r := <-out:
			return r
		case <-time.After(patience):
			t.Fatal("no answer")
			return result{}
		}
	}
	t.Run("woken by a change", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a, b := w.agent("mini-1", 5), w.agent("mini-2", 5)
		now, _ := a.desired("", 0)
		out := ask(a, now.Revision, 30)
		b.place() // is none of its business
		id := a.place()
		r := await(t, out)
		if r.d.Revision != now.Revision+1 || len(r.d.Runners) != 1 || r.d.Runners[0].ID != string(id) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("the wait is over", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 5)
		now, _ := a.desired("", 0)
		start := time.Now()
		r := await(t, ask(a, now.Revision, 1))
		if r.d.Revision != now.Revision || time.Since(start) < time.Second {
			t.Errorf("%+v after %s", r.d, time.Since(start))
		}
	})
	t.Run("the host is removed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 5)
		now, _ := a.desired("", 0)
		out := ask(a, now.Revision, 30)
		w.must(w.s.RemoveHost(t.Context(), a.id))
		w.refused(await(t, out).got, http.StatusUnauthorized, protocol.CodeCredential)
	})
	t.Run("a client that hangs up frees the call", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 5)
		now, _ := a.desired("", 0)
		for len(w.returned) > 0 {
			<-w.returned
		}
		for len(w.s.watched) > 0 {
			<-w.s.watched
		}
		ctx, cancel := context.WithCancel(t.Context())
		failed := make(chan error, 1)
		go func() {
			_, err := w.call(ctx, http.MethodGet, fmt.Sprintf("%s?instance=%s&revision=%d&wait=30", protocol.PathDesired, a.instance, now.Revision), a.credential, nil)
			failed <- err
		}()
		<-w.s.watched
		start := time.Now()
		cancel()
		if err := <-failed; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
		select {
		case <-w.returned:
			if since := time.Since(start); since > 25*time.Second {
				t.Errorf("the call ended only after %s", since)
			}
		case <-time.After(patience):
			t.Error("the call is still held")
		}
	})
}

func TestDesiredSaysAllThatAHostNeeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *hosts.Config) { c.EndGrace = 90 * time.Second })
	a := w.agent("mini-1", 9)
	up := a.place()
	armed := a.armed()
	drain, gone := a.place(), a.place()
	done, err := w.s.Carry(t.Context(), fleet.Plan{Retires: []fleet.Retire{
		{Runner: drain, Version: 1, Drain: true, Reason: "x"}, {Runner: gone, Version: 1, Reason: "x"},
	}, Places: []fleet.Place{{Pool: "removed", Host: a.id}}})
	w.must(err)
	if done.Done != 3 {
		t.Fatalf("%+v", done)
	}
	d, _ := a.desired("", 0)
	if d.Site != w.s.Site() || d.Epoch != 1 || d.Revision < 2 {
		t.Errorf("%+v", d)
	}
	got := map[string]protocol.Desire{}
	for _, r := range d.Runners {
		got[r.ID] = r
	}
	desire := func(id fleet.RunnerID, edit func(*protocol.Desire)) protocol.Desire {
		x := protocol.Desire{ID: string(id), Pool: "mac", Image: "sonoma", Backend: "vz", CPUs: 4, MemoryMiB: 8192, EndGraceSeconds: 90}
		edit(&x)
		return x
	}
	want := map[string]protocol.Desire{
		string(up):    desire(up, func(x *protocol.Desire) { x.Wanted = protocol.WantUp }),
		string(armed): desire(armed, func(x *protocol.Desire) { x.Wanted, x.Scope = protocol.WantArmed, "Acme" }),
		string(drain): desire(drain, func(x *protocol.Desire) { x.Wanted, x.UnlessBusy = protocol.WantGone, true }),
		string(gone):  desire(gone, func(x *protocol.Desire) { x.Wanted = protocol.WantGone }),
		// Its pool is not configured any more: the agent is told what is known.
		string(done.Placed[0]): {ID: string(done.Placed[0]), Wanted: protocol.WantUp, Pool: "removed", EndGraceSeconds: 90},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	none := w.agent("mini-2", 1)
	if _, got := none.desired("", 0); !strings.Contains(string(got.body), `"runners":[]`) {
		t.Errorf("no runners are not an empty list: %s", got.body)
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	t.Run("whoever waits for it is told once it is stored", func(t *testing.T) {
		t.Parallel()
		var w *world
		told := []string{}
		w = newWorld(t, func(c *hosts.Config) {
			c.Reported = func(id fleet.HostID) {
				stored, err := w.row(`SELECT observed FROM runners WHERE host = $1`, string(id))
				if err != nil {
					t.Error(err)
				}
				told = append(told, stored)
			}
		})
		a := w.agent("mini-1", 2)
		id := string(a.place())
		a.report(protocol.RunnerReport{ID: id, Observed: "standby", HoldsSlot: true, Pool: "mac"})
		a.refused(a.report(protocol.RunnerReport{ID: id, Observed: "asleep", Pool: "mac"}), http.StatusBadRequest, protocol.CodeBadRequest)
		if want := []string{"standby"}; !slices.Equal(told, want) {
			t.Errorf("told when the books said %q, want %q", told, want)
		}
	})
	t.Run("what is seen is stored", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		id := a.place()
		r := protocol.RunnerReport{ID: string(id), Observed: "idle", HoldsSlot: true, HasConfig: true, Progress: "p", Pool: "mac"}
		r.Took = protocol.StepTimes{Runner: 1, Image: 2, Clone: 3, Restore: 4, Boot: 5, Install: 6, Session: 7, Listener: 8, Job: 9, Stop: 10, Delete: 11}
		if got := a.report(r); got.status != http.StatusNoContent || len(got.body) != 0 {
			t.Errorf("%d %s", got.status, got.body)
		}
		if r := w.runner(id); r.Observed != fleet.ObservedIdle || !r.HasConfig || r.Progress != "p" {
			t.Errorf("%+v", r)
		}
		for _, step := range fleet.Steps() {
			if want, got := time.Duration(step+1)*time.Microsecond, w.runner(id).Took[step]; got != want {
				t.Errorf("%s took %s, want %s", step, got, want)
			}
		}
		r.Observed, r.Failure, r.Result, r.HoldsSlot = "gone", "f", "succeeded", false
		a.report(r)
		if r := w.runner(id); r.Observed != fleet.ObservedGone || r.Failure != "f" || r.Result != "succeeded" || r.HoldsSlot {
			t.Errorf("%+v", r)
		}
	})
	t.Run("in the order of their sequence", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		id := a.place()
		a.sequence = 7
		a.report(protocol.RunnerReport{ID: string(id), Observed: "standby", HoldsSlot: true, Pool: "mac"})
		a.sequence = 3
		if got := a.report(); got.status != http.StatusNoContent { // an old one, that knows no runner yet
			t.Errorf("%d", got.status)
		}
		if r := w.runner(id); r.Observed != fleet.ObservedStandby {
			t.Errorf("%+v", r)
		}
	})
	t.Run("an unknown VM is adopted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		a.report(protocol.RunnerReport{ID: "r-old", Observed: "busy", HoldsSlot: true, HasConfig: true, Pool: "mac", Scope: "Acme/App", RunnerName: w.s.Site() + "-mac-1"})
		if r := w.runner("r-old"); r.Wanted != fleet.WantArmed || r.Scope.String() != "Acme/App" || r.Registration != fleet.RegMinted {
			t.Errorf("%+v", r)
		}
	})
	t.Run("texts are fit to be shown", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		id := a.place()
		a.report(protocol.RunnerReport{ID: string(id), Observed: "failed", Pool: "mac", Failure: "a\x1b[31mred\nline \u202eback", Progress: "ü 10 %\t"})
		if r := w.runner(id); r.Failure != "a [31mred line  back" || r.Progress != "ü 10 % " {
			t.Errorf("%q, %q", r.Failure, r.Progress)
		}
	})
	t.Run("an agent from a later time than the database", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		rep := protocol.Report{Instance: a.instance, Sequence: 1, Revision: 1 << 53, Facts: facts(2)}
		if got := w.do(http.MethodPost, protocol.PathReport, a.credential, rep, nil); got.status != http.StatusNoContent {
			t.Errorf("%d %s", got.status, got.body)
		}
		if d, _ := a.desired("", 0); d.Revision != 1<<53+1 {
			t.Errorf("revision %d", d.Revision)
		}
	})
	t.Run("fields that are not known are ignored", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		body := `{"instance":"` + a.instance + `","sequence":1,"facts":{"slots":3,"gpu":true},"runners":[],"new_field":{"a":[1]}}`
		if got := w.do(http.MethodPost, protocol.PathReport, a.credential, body, nil); got.status != http.StatusNoContent {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	t.Run("refused as a whole", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		id := a.place()
		good := protocol.RunnerReport{ID: string(id), Observed: "standby", HoldsSlot: true, Pool: "mac"}
		long := strings.Repeat("x", protocol.MaxText+1)
		for name, edit := range map[string]func(*protocol.Report){
			"no id":           func(r *protocol.Report) { r.Runners[1].ID = "" },
			"id":              func(r *protocol.Report) { r.Runners[1].ID = "../x" },
			"long id":         func(r *protocol.Report) { r.Runners[1].ID = strings.Repeat("x", protocol.MaxID+1) },
			"id twice":        func(r *protocol.Report) { r.Runners[1].ID = string(id) },
			"observed":        func(r *protocol.Report) { r.Runners[1].Observed = "asleep" },
			"no observed":     func(r *protocol.Report) { r.Runners[1].Observed = "" },
			"long failure":    func(r *protocol.Report) { r.Runners[1].Failure = long },
			"long progress":   func(r *protocol.Report) { r.Runners[1].Progress = long },
			"long result":     func(r *protocol.Report) { r.Runners[1].Result = strings.Repeat("x", 101) },
			"pool":            func(r *protocol.Report) { r.Runners[1].Pool = "No Pool" },
			"scope":           func(r *protocol.Report) { r.Runners[1].Scope = "a/b/c" },
			"runner name":     func(r *protocol.Report) { r.Runners[1].RunnerName = "a b" },
			"step < 0":        func(r *protocol.Report) { r.Runners[1].Took.Boot = -1 },
			"endless step":    func(r *protocol.Report) { r.Runners[1].Took.Delete = protocol.MaxStep.Microseconds() + 1 },
			"revision < 0":    func(r *protocol.Report) { r.Revision = -1 },
			"huge revision":   func(r *protocol.Report) { r.Revision = 1<<63 - 1 },
			"huge sequence":   func(r *protocol.Report) { r.Sequence = 1<<63 - 1 },
			"facts":           func(r *protocol.Report) { r.Facts.Slots = -1 },
			"too many of all": func(r *protocol.Report) { r.Runners = make([]protocol.RunnerReport, protocol.MaxRunners+1) },
		} {
			rep := protocol.Report{Instance: a.instance, Sequence: 1, Facts: facts(2), Runners: []protocol.RunnerReport{good, {ID: "r-2", Observed: "standby", Pool: "mac"}}}
			edit(&rep)
			got := w.do(http.MethodPost, protocol.PathReport, a.credential, rep, nil)
			if got.status != http.StatusBadRequest || got.code() != protocol.CodeBadRequest || len(got.body) > 1000 {
				t.Errorf("%s: %d %.200s", name, got.status, got.body)
			}
			if r := w.runner(id); r.Observed != fleet.ObservedNone {
				t.Fatalf("%s: half of the report was taken", name)
			}
		}
		huge := `{"instance":"` + strings.Repeat("x", protocol.MaxBody) + `"}`
		w.refused(w.do(http.MethodPost, protocol.PathReport, a.credential, huge, nil), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge)
	})
	t.Run("at its limits", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		var all []protocol.RunnerReport
		for i := range protocol.MaxRunners {
			all = append(all, protocol.RunnerReport{
				ID: fmt.Sprintf("r-%d", i), Observed: "failed", Pool: "mac", Failure: strings.Repeat("f", protocol.MaxText), Progress: strings.Repeat("p", protocol.MaxText/2),
			})
		}
		if got := a.report(all...); got.status != http.StatusNoContent {
			t.Errorf("%d %.200s", got.status, got.body)
		}
	})
}

// A store in trouble is the controller's trouble, not the agent's.
func TestStoreInTrouble(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	id := a.armed()
	w.must(w.s.Close())
	_, desired := a.desired("", 0)
	_, mint := a.mint(id)
	enrol := w.do(http.MethodPost, protocol.PathEnrol, "", protocol.Enrol{Token: "t", CredentialHash: strings.Repeat("0a", 32), Name: "n", Machine: "m"}, nil)
	for name, got := range map[string]answer{"desired": desired, "report": a.report(), "mint": mint, "enrol": enrol} {
		if got.status != http.StatusServiceUnavailable || got.code() != protocol.CodeUnavailable {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
		if strings.Contains(string(got.body), "sql") {
			t.Errorf("%s tells of the inside: %s", name, got.body)
		}
	}
	if !strings.Contains(w.log.String(), "agent request failed") {
		t.Error("the operator is not told")
	}
}
