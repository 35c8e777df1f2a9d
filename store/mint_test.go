// SPDX-License-Identifier: MIT

package store_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

// at brings a runner's registration to a state by what leads there.
func (w *world) at(h fleet.HostID, reg fleet.Registration) fleet.RunnerID {
	w.Helper()
	id := w.armed(h, 1)
	if reg == fleet.RegNone {
		return id
	}
	m, err := w.s.BeginMint(w.ctx(), h, id, "mf-1")
	w.must(err)
	switch reg {
	case fleet.RegMinting:
	case fleet.RegMinted:
		w.must(w.s.Granted(w.ctx(), id, m.Attempt, 77))
	case fleet.RegBusy:
		w.job(2, fleet.ToldInProgress, "mf-1")
	case fleet.RegDeleting:
		w.must(w.s.Granted(w.ctx(), id, m.Attempt, 77))
		w.carry(fleet.Plan{Deletes: []fleet.Delete{{Runner: id, Version: w.runner(id).Version, Reason: "test"}}})
	case fleet.RegGone:
		w.must(w.s.MintRefused(w.ctx(), id, m.Attempt, "no", false))
	}
	if r := w.runner(id); r.Registration != reg {
		w.Fatalf("registration %q, want %q", r.Registration, reg)
	}
	return id
}

func testMint(t *testing.T, open opener) {
	earlier := fleet.RegistrationRef{Scope: acme, Name: "mf-1", Begun: epoch}
	withID := earlier
	withID.ID = 77
	for reg, c := range map[fleet.Registration]struct {
		want fleet.Mint
		err  error
		now  fleet.Registration
	}{
		fleet.RegNone:     {want: fleet.Mint{Attempt: 1, Name: "mf-2"}, now: fleet.RegMinting},
		fleet.RegMinting:  {want: fleet.Mint{Attempt: 1, Earlier: &earlier}, now: fleet.RegDeleting},
		fleet.RegMinted:   {want: fleet.Mint{Attempt: 1, Earlier: &withID}, now: fleet.RegDeleting},
		fleet.RegBusy:     {err: fleet.ErrRunnerBusy, now: fleet.RegBusy},
		fleet.RegDeleting: {want: fleet.Mint{Attempt: 1, Earlier: &withID}, now: fleet.RegDeleting},
		fleet.RegGone:     {want: fleet.Mint{Attempt: 2, Name: "mf-2"}, now: fleet.RegMinting},
	} {
		t.Run("begin in state "+string(reg), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, open)
			h := w.host("a", 2)
			id := w.at(h, reg)
			got, err := w.s.BeginMint(w.ctx(), h, id, "mf-2")
			w.wantErr(err, c.err)
			if c.err == nil {
				c.want.Runner, c.want.Pool, c.want.Scope = id, "mac", acme
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			}
			r := w.runner(id)
			if r.Registration != c.now {
				t.Errorf("registration %q, want %q", r.Registration, c.now)
			}
			if got.Name != "" && (r.RunnerName != "mf-2" || r.GitHubID != 0 || r.Attempt != got.Attempt) {
				t.Errorf("%+v", r)
			}
		})
	}
	t.Run("who may not", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		a, b := w.host("a", 9), w.host("b", 2)
		begin := func(h fleet.HostID, id fleet.RunnerID, want error) {
			t.Helper()
			_, err := w.s.BeginMint(w.ctx(), h, id, "mf-x")
			w.wantErr(err, want)
		}
		clean := w.standby(a)
		begin(a, "r-none", fleet.ErrNotFound)
		begin(a, clean, fleet.ErrNoGrant)
		armed := w.armed(a, 1)
		begin(b, armed, fleet.ErrWrongHost)
		retire := func(id fleet.RunnerID, drain bool) {
			w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Drain: drain, Reason: "x"}}})
		}
		retire(armed, true)
		begin(a, armed, fleet.ErrNoGrant)
		gone := w.armed(a, 2)
		retire(gone, false)
		begin(a, gone, fleet.ErrNoGrant)
		s := said("r-adopted", fleet.ObservedStandby)
		s.HasConfig, s.Scope = true, acme
		w.report(a, w.others(a, s)...)
		begin(a, "r-adopted", fleet.ErrNoGrant) // nobody granted it anything
		lost := w.armed(a, 3)
		w.report(a, w.others(a, said(lost, fleet.ObservedGone))...)
		begin(a, lost, fleet.ErrNoGrant)
		if use := w.state().Mints["acme"]; len(use.Begun) != 0 {
			t.Errorf("refused mints count: %+v", use)
		}
	})
	t.Run("a name is used once in all time", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 9)
		w.minted(h, 1, "mf-1")
		other := w.armed(h, 2)
		if _, err := w.s.BeginMint(w.ctx(), h, other, "mf-1"); err == nil {
			t.Fatal("a name was given twice")
		}
		if r := w.runner(other); r.Registration != fleet.RegNone || r.Attempt != 0 {
			t.Errorf("half of the attempt is stored: %+v", r)
		}
	})
	t.Run("a repeated request deletes the earlier registration first", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.minted(h, 1, "mf-1")
		m, err := w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.must(err)
		if m.Name != "" || m.Earlier == nil || m.Earlier.Name != "mf-1" || m.Earlier.ID != 1001 {
			t.Fatalf("%+v", m)
		}
		w.must(w.s.RegistrationDeleted(w.ctx(), id, m.Attempt))
		m, err = w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.must(err)
		if m.Name != "mf-2" || m.Attempt != 2 || m.Earlier != nil {
			t.Fatalf("%+v", m)
		}
		// Late news of the first attempt changes nothing of the second.
		w.must(w.s.Granted(w.ctx(), id, 1, 5))
		w.must(w.s.MintRefused(w.ctx(), id, 1, "late", false))
		w.must(w.s.RegistrationDeleted(w.ctx(), id, 1))
		w.must(w.s.DeleteVetoed(w.ctx(), id, 1, w.Now().Add(time.Hour)))
		if r := w.runner(id); r.Registration != fleet.RegMinting || r.GitHubID != 0 || !r.DeleteAfter.IsZero() {
			t.Errorf("%+v", r)
		}
	})
	t.Run("a refusal that lasts takes the grant back, and counts until one is granted", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		at := fleet.PoolScope{Pool: "mac", Scope: acme.Key()}
		id := w.armed(h, 1)
		for times := 1; times <= 2; times++ {
			if times > 1 {
				w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}}})
			}
			m, err := w.s.BeginMint(w.ctx(), h, id, fmt.Sprint("mf-", times))
			w.must(err)
			w.must(w.s.MintRefused(w.ctx(), id, m.Attempt, "no such group", true))
			if r := w.runner(id); r.Phase() != fleet.PhaseStandby || !r.Scope.IsZero() {
				t.Errorf("%s: %+v", r.Phase(), r)
			}
			want := fleet.Refusals{Times: times, LastAt: w.Now(), Reason: "no such group"}
			if diff := cmp.Diff(want, w.state().Refused[at]); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			w.mirrored()
		}
		w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: acme, Job: 1}}})
		m, err := w.s.BeginMint(w.ctx(), h, id, "mf-3")
		w.must(err)
		w.must(w.s.Granted(w.ctx(), id, m.Attempt, 7))
		if n := len(w.state().Refused); n > 0 {
			t.Errorf("%d refusals are still counted", n)
		}
	})
	t.Run("news that the App is there ends the rest of what was refused in its account", func(t *testing.T) {
		t.Parallel()
		beta := fleet.Installation{ID: 2, Account: "Beta"}
		for name, c := range map[string]struct {
			before, list []fleet.Installation // GitHub's list, before and after the refusals
			told         *fleet.Installation
			again        bool
		}{
			"resumed, added to a repository, or given a permission": {told: &fleet.Installation{ID: 1, Account: "ACME"}, again: true},
			"suspended":                  {told: &fleet.Installation{ID: 1, Account: "Acme", Suspended: true}},
			"removed":                    {told: &fleet.Installation{ID: 1, Account: "Acme", Deleted: true}},
			"another account":            {told: &fleet.Installation{ID: 1, Account: "Ac"}},
			"found by the list":          {list: []fleet.Installation{beta, {ID: 1, Account: "Acme"}}, again: true},
			"resumed, by the list":       {before: []fleet.Installation{{ID: 1, Account: "Acme", Suspended: true}}, list: []fleet.Installation{{ID: 1, Account: "Acme"}}, again: true},
			"still suspended":            {before: []fleet.Installation{beta}, list: []fleet.Installation{beta, {ID: 1, Account: "Acme", Suspended: true}}},
			"listed as it was":           {before: []fleet.Installation{{ID: 1, Account: "Acme"}}, list: []fleet.Installation{beta, {ID: 1, Account: "Acme"}}},
			"another, found by the list": {list: []fleet.Installation{beta}},
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t, open)
				h := w.host("a", 3)
				w.must(w.s.SetInstallations(w.ctx(), c.before, nil))
				at := w.Now()
				for i, scope := range []fleet.Scope{acme, {Owner: acme.Owner}} {
					id := w.armed(h, fleet.JobID(i+1))
					w.carry(fleet.Plan{Disarms: []fleet.Disarm{{Runner: id, Version: w.runner(id).Version}}})
					w.carry(fleet.Plan{Arms: []fleet.Arm{{Runner: id, Version: w.runner(id).Version, Scope: scope, Job: fleet.JobID(i + 1)}}})
					m, err := w.s.BeginMint(w.ctx(), h, id, fmt.Sprint("mf-", i))
					w.must(err)
					at = w.Now()
					w.must(w.s.MintRefused(w.ctx(), id, m.Attempt, "not installed", true))
				}
				if c.told != nil {
					_, err := w.s.Ingest(w.ctx(), fleet.Ingest{Delivery: w.delivery("told", fleet.DeliveryProcessed), Installation: c.told})
					w.must(err)
				} else {
					w.must(w.s.SetInstallations(w.ctx(), c.list, nil))
				}
				refused := w.state().Refused
				if len(refused) != 2 {
					t.Errorf("%d are counted, want 2", len(refused))
				}
				for in, r := range refused {
					if r.LastAt.IsZero() != c.again || !c.again && !r.LastAt.Equal(at) || r.Times != 1 || r.Reason != "not installed" {
						t.Errorf("%s: %+v", in.Scope, r)
					}
				}
				w.mirrored()
			})
		}
	})
	t.Run("vetoed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.minted(h, 1, "mf-1")
		m, err := w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.must(err)
		retry := w.Now().Add(time.Minute)
		w.must(w.s.DeleteVetoed(w.ctx(), id, m.Attempt, retry))
		_, err = w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.wantErr(err, fleet.ErrRunnerBusy)
		if r := w.runner(id); r.Registration != fleet.RegBusy || !r.DeleteAfter.Equal(retry) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("not before the retry time of a failed delete", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.minted(h, 1, "mf-1")
		m, err := w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.must(err)
		w.must(w.s.DeleteFailed(w.ctx(), id, m.Attempt, w.Now().Add(time.Minute)))
		_, err = w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.wantErr(err, fleet.ErrLater)
		w.Add(time.Minute)
		m, err = w.s.BeginMint(w.ctx(), h, id, "mf-2")
		w.must(err)
		if m.Earlier == nil || m.Earlier.Name != "mf-1" {
			t.Errorf("%+v", m)
		}
	})
	t.Run("granted after a DELETE found nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.at(h, fleet.RegMinting)
		w.report(h, said(id, fleet.ObservedGone)) // the VM dies during the call to GitHub
		w.carry(fleet.Plan{Deletes: []fleet.Delete{{Runner: id, Version: w.runner(id).Version, Reason: "its VM is gone"}}})
		w.must(w.s.RegistrationDeleted(w.ctx(), id, 1)) // 404: GitHub had not made it yet
		w.must(w.s.Granted(w.ctx(), id, 1, 99))
		r := w.runner(id)
		if r.Over() || r.Registration != fleet.RegDeleting || r.GitHubID != 99 {
			t.Errorf("a registration is left at GitHub and forgotten here: %+v", r)
		}
		if st := w.state(); len(st.Runners) != 1 {
			t.Error("no decision will see it")
		}
	})
	t.Run("unknown runner", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		w.wantErr(w.s.Granted(w.ctx(), "r-none", 1, 1), fleet.ErrNotFound)
		w.wantErr(w.s.MintRefused(w.ctx(), "r-none", 1, "", false), fleet.ErrNotFound)
		w.wantErr(w.s.RegistrationDeleted(w.ctx(), "r-none", 1), fleet.ErrNotFound)
	})
}

func testDelete(t *testing.T, open opener) {
	plan := func(w *world, id fleet.RunnerID) fleet.Plan {
		return fleet.Plan{Deletes: []fleet.Delete{{Runner: id, Version: w.runner(id).Version, Reason: "test"}}}
	}
	for reg, void := range map[fleet.Registration]bool{
		fleet.RegNone: true, fleet.RegMinting: false, fleet.RegMinted: false, fleet.RegBusy: false, fleet.RegDeleting: false, fleet.RegGone: true,
	} {
		t.Run("intended in state "+string(reg), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, open)
			id := w.at(w.host("a", 2), reg)
			done := w.carry(plan(w, id))
			if (done.Void == 1) != void || (len(done.Deletes) == 0) != void {
				t.Fatalf("%+v", done)
			}
			if void {
				return
			}
			want := fleet.Deletion{Runner: id, Attempt: 1, Ref: fleet.RegistrationRef{Scope: acme, Name: "mf-1", Begun: epoch}, Since: epoch}
			if reg == fleet.RegMinted || reg == fleet.RegDeleting {
				want.Ref.ID = 77
			}
			if diff := cmp.Diff([]fleet.Deletion{want}, done.Deletes); diff != "" {
				t.Errorf("%s", diff)
			}
			if r := w.runner(id); r.Registration != fleet.RegDeleting {
				t.Errorf("the intent is not stored: %q", r.Registration)
			}
		})
	}
	t.Run("outcomes", func(t *testing.T) {
		t.Parallel()
		for name, c := range map[string]struct {
			do    func(*world, fleet.RunnerID) error
			want  fleet.Registration
			retry time.Duration
		}{
			"deleted": {do: func(w *world, id fleet.RunnerID) error { return w.s.RegistrationDeleted(w.ctx(), id, 1) }, want: fleet.RegGone},
			"vetoed": {do: func(w *world, id fleet.RunnerID) error {
				return w.s.DeleteVetoed(w.ctx(), id, 1, w.Now().Add(time.Minute))
			}, want: fleet.RegBusy, retry: time.Minute},
			"failed": {do: func(w *world, id fleet.RunnerID) error {
				return w.s.DeleteFailed(w.ctx(), id, 1, w.Now().Add(time.Second))
			}, want: fleet.RegDeleting, retry: time.Second},
		} {
			w := newWorld(t, open)
			id := w.at(w.host("a", 2), fleet.RegDeleting)
			w.must(c.do(w, id))
			w.must(c.do(w, id)) // a repetition changes nothing
			r := w.runner(id)
			var want time.Time
			if c.retry > 0 {
				want = w.Now().Add(c.retry)
			}
			if r.Registration != c.want || !r.DeleteAfter.Equal(want) {
				t.Errorf("%s: %q, again after %s", name, r.Registration, r.DeleteAfter)
			}
		}
	})
	t.Run("a deletion that counts as a failure", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, open)
		h := w.host("a", 2)
		id := w.at(h, fleet.RegMinted)
		p := fleet.Plan{Deletes: []fleet.Delete{{Runner: id, Version: w.runner(id).Version, Failure: true, Reason: "too slow"}}}
		w.carry(p)
		if r := w.runner(id); r.Failure != "too slow" || r.Retired != "too slow" || !r.RetiredAt.Equal(w.Now()) || w.hostNow(h).Failures != 1 {
			t.Errorf("%+v", r)
		}
		p.Deletes[0].Version = w.runner(id).Version
		w.carry(p) // repeated, counted once
		if w.hostNow(h).Failures != 1 {
			t.Error("a repetition counts again")
		}
		w.must(w.s.DeleteVetoed(w.ctx(), id, 1, w.Now()))
		if r := w.runner(id); r.Retired != "" || r.Failure != "" || !r.RetiredAt.IsZero() {
			t.Errorf("it stays, and is still sentenced: %+v", r)
		}
	})
	t.Run("a veto takes nothing back of a VM that has ended", func(t *testing.T) {
		t.Parallel()
		for _, end := range []fleet.Observed{fleet.ObservedFailed, fleet.ObservedGone} {
			w := newWorld(t, open)
			h := w.host("a", 2)
			id := w.at(h, fleet.RegDeleting)
			died := said(id, end)
			died.HasConfig, died.Failure = true, "the vmm died"
			w.report(h, died)
			w.must(w.s.DeleteVetoed(w.ctx(), id, 1, w.Now()))
			if r := w.runner(id); r.Failure != "the vmm died" || r.Registration != fleet.RegBusy {
				t.Errorf("%s: %+v", end, r)
			}
		}
	})
	t.Run("a veto takes back a drain, and not more", func(t *testing.T) {
		t.Parallel()
		for drain, want := range map[bool]fleet.Wanted{true: fleet.WantArmed, false: fleet.WantGone} {
			w := newWorld(t, open)
			id := w.at(w.host("a", 2), fleet.RegDeleting)
			w.carry(fleet.Plan{Retires: []fleet.Retire{{Runner: id, Version: w.runner(id).Version, Drain: drain, Reason: "x"}}})
			w.must(w.s.DeleteVetoed(w.ctx(), id, 1, w.Now()))
			if r := w.runner(id); r.Wanted != want {
				t.Errorf("drain %t: wanted %q", drain, r.Wanted)
			}
		}
	})
}
