// SPDX-License-Identifier: MIT

package store_test

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pressly/goose/v3"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

const reference = "gs://b/mac:stable"

func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

func image(letter string) string { return fleet.ImageAt(reference, digest(letter)) }

func pools(images ...string) (list []fleet.Pool) {
	for i, image := range images {
		list = append(list, fleet.Pool{Name: []string{"mac", "other", "third"}[i], Image: image})
	}
	return list
}

// rolling brings pool mac to where image b is rolled out and a serves.
func (w *world) rolling() {
	w.Helper()
	w.must(w.s.ConfigureRollouts(w.ctx(), pools(reference)))
	w.must(w.s.ImageResolved(w.ctx(), reference, digest("a")))
	w.must(w.s.ImageResolved(w.ctx(), reference, digest("b")))
}

func (w *world) rollout(pool string) fleet.Rollout {
	w.Helper()
	all, err := w.s.Rollouts(w.ctx())
	w.must(err)
	return all[pool]
}

func TestRollouts(t *testing.T) {
	t.Parallel()
	t.Run("one for each pool with a reference", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, openSQLite)
		changed := w.s.Changed()
		w.must(w.s.ConfigureRollouts(w.ctx(), pools(reference, "sonoma", image("c"))))
		all, err := w.s.Rollouts(w.ctx())
		w.must(err)
		if len(all) != 2 || all["mac"].Reference != reference || all["third"].Current != image("c") || !closed(changed) {
			t.Errorf("%+v", all)
		}
		w.must(w.s.ConfigureRollouts(w.ctx(), pools("sonoma", reference)))
		if all, err = w.s.Rollouts(w.ctx()); err != nil || len(all) != 1 || all["other"].Reference != reference {
			t.Errorf("%+v, %v", all, err)
		}
	})
	t.Run("a restart changes nothing", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "minifleet.db")
		w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
		w.rolling()
		_, err := w.s.ChangeRollout(w.ctx(), "mac", func(r fleet.Rollout, now time.Time) (fleet.Rollout, error) {
			r.Error, r.ErrorAt, r.Held, r.Previous, r.Note, r.TriedAt, r.PromotedAt = "403", now, image("c"), image("d"), "n", now, now
			r.Failures, r.FailedAt, r.Failure = 2, now, "f"
			return r, nil
		})
		w.must(err)
		before := w.rollout("mac")
		w.must(w.s.Close())
		next := &world{T: t, clock: w.clock, s: openAt(t, path, w.Now)}
		next.must(next.s.ConfigureRollouts(t.Context(), pools(reference)))
		if diff := cmp.Diff(before, next.rollout("mac")); diff != "" {
			t.Errorf("(-before +after):\n%s", diff)
		}
	})
	t.Run("a tag that did not move writes nothing and wakes nobody", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, openSQLite)
		w.rolling()
		before, changed := w.rollout("mac"), w.s.Changed()
		w.must(w.s.ImageResolved(w.ctx(), reference, digest("b")))
		w.must(w.s.ImageResolved(w.ctx(), "gs://b/another", digest("c")))
		if w.rollout("mac") != before || closed(changed) {
			t.Errorf("%+v", w.rollout("mac"))
		}
		w.must(w.s.ImageUnresolved(w.ctx(), reference, "403"))
		if r := w.rollout("mac"); r.Error != "403" || r.Version != before.Version+1 || !closed(changed) {
			t.Errorf("%+v", r)
		}
	})
	t.Run("two pools of one reference", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, openSQLite)
		w.must(w.s.ConfigureRollouts(w.ctx(), pools(reference, reference)))
		w.must(w.s.ImageResolved(w.ctx(), reference, digest("a")))
		if w.rollout("mac").Current != image("a") || w.rollout("other").Current != image("a") {
			t.Errorf("%+v %+v", w.rollout("mac"), w.rollout("other"))
		}
	})
	t.Run("a decision on an older version is void", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, openSQLite)
		w.rolling()
		v := w.rollout("mac").Version
		step := fleet.RolloutStep{Pool: "mac", Version: v, Act: fleet.ActPromote, Reason: "ready"}
		w.must(w.s.ImageResolved(w.ctx(), reference, digest("c")))
		if done := w.carry(fleet.Plan{Rollouts: []fleet.RolloutStep{step}}); done.Void != 1 || w.rollout("mac").Current != image("a") {
			t.Errorf("%+v", done)
		}
		step.Version = w.rollout("mac").Version
		if done := w.carry(fleet.Plan{Rollouts: []fleet.RolloutStep{step, {Pool: "none"}}}); done.Done != 1 || done.Void != 1 {
			t.Errorf("%+v", done)
		}
		if r := w.rollout("mac"); r.Current != image("c") || r.Previous != image("a") || r.Note != "ready" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("an operator's error changes nothing", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, openSQLite)
		w.rolling()
		before := w.rollout("mac")
		_, err := w.s.ChangeRollout(w.ctx(), "mac", func(r fleet.Rollout, _ time.Time) (fleet.Rollout, error) {
			r.Current = image("d")
			return r, fleet.ErrNoPrevious
		})
		w.wantErr(err, fleet.ErrNoPrevious)
		if w.rollout("mac") != before {
			t.Errorf("%+v", w.rollout("mac"))
		}
		_, err = w.s.ChangeRollout(w.ctx(), "none", nil)
		w.wantErr(err, fleet.ErrNotFound)
	})
}

// placed puts a runner with an image on the host.
func (w *world) placed(h fleet.HostID, letter string) fleet.RunnerID {
	w.Helper()
	done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: "mac", Image: image(letter), Tries: true, Host: h, Reason: "test"}}})
	if len(done.Placed) != 1 {
		w.Fatalf("not placed: %+v", done)
	}
	return done.Placed[0]
}

// A runner keeps the image that it was placed with, whatever its pool has by then.
func TestRunnerKeepsItsImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	w.rolling()
	h := w.host("h", 2)
	id := w.placed(h, "a")
	_, err := w.s.ChangeRollout(w.ctx(), "mac", func(r fleet.Rollout, now time.Time) (fleet.Rollout, error) { return r.Promoted("", now) })
	w.must(err)
	if d := w.desired(h); d.Runners[0].Image != image("a") || w.runner(id).Image != image("a") || w.state().Runners[0].Image != image("a") {
		t.Errorf("%+v", d)
	}
}

// A plan that was made before its pool went on to another image, or back from one, makes no
// runner from what was left.
func TestNoRunnerFromWhatWasLeft(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	w.rolling()
	h := w.host("h", 9)
	places := func(want string, pool, letters string) {
		t.Helper()
		for _, letter := range letters {
			done := w.carry(fleet.Plan{Places: []fleet.Place{{Pool: pool, Image: image(string(letter)), Tries: true, Host: h, Reason: "test"}}})
			placed := strings.ContainsRune(want, letter)
			if len(done.Placed) == 1 != placed || done.Void == 1 == placed {
				t.Errorf("%+v: %c of pool %s is %+v", w.rollout("mac"), letter, pool, done)
			}
		}
	}
	change := func(next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) {
		t.Helper()
		_, err := w.s.ChangeRollout(w.ctx(), "mac", next)
		w.must(err)
	}
	places("ab", "mac", "abc")
	places("", "none", "ab")
	// A plan in which the next one serves, and whose promotion did not hold, tries nothing.
	if done := w.carry(fleet.Plan{
		Rollouts: []fleet.RolloutStep{{Pool: "mac", Version: 1 << 40, Act: fleet.ActPromote}},
		Places:   []fleet.Place{{Pool: "mac", Image: image("b"), Host: h, Reason: "test"}, {Pool: "mac", Image: image("a"), Host: h, Reason: "test"}},
	}); done.Void != 2 || done.Done != 1 {
		t.Errorf("%+v", done)
	}
	change(func(r fleet.Rollout, now time.Time) (fleet.Rollout, error) { return r.Promoted("", now) })
	places("b", "mac", "ab")
	change(func(r fleet.Rollout, now time.Time) (fleet.Rollout, error) { return r.WentBack("", now) })
	places("a", "mac", "ab")
	// In one plan: what rests on a promotion that did not hold is not placed either.
	done := w.carry(fleet.Plan{
		Rollouts: []fleet.RolloutStep{{Pool: "mac", Version: 1, Act: fleet.ActPromote}},
		Places:   []fleet.Place{{Pool: "mac", Image: image("b"), Host: h, Reason: "test"}},
	})
	if done.Void != 2 || done.Done != 0 {
		t.Errorf("%+v", done)
	}
	if p, err := w.s.Carry(w.ctx(), fleet.Plan{Places: []fleet.Place{{Pool: "plain", Image: "demo", Host: h}}}); err != nil || len(p.Placed) != 1 {
		t.Errorf("an image by name: %+v, %v", p, err)
	}
	w.mirrored()
}

// Failures of what is tried count against it and the host, all others against the pool.
func TestWhoseFailure(t *testing.T) {
	t.Parallel()
	w := newWorld(t, openSQLite)
	w.rolling()
	h := w.host("h", 9)
	fail := func(letter string) {
		t.Helper()
		r := said(w.placed(h, letter), fleet.ObservedFailed)
		r.Failure = "no boot"
		w.report(h, w.others(h, r)...)
	}
	fail("b")
	w.Add(time.Second)
	fail("b")
	r := w.rollout("mac")
	if r.Failures != 2 || r.Failure != "no boot" || !r.FailedAt.Equal(w.Now()) || len(w.state().Pools) != 0 || w.hostNow(h).Failures != 2 {
		t.Errorf("%+v, pools %+v, host %d", r, w.state().Pools, w.hostNow(h).Failures)
	}
	fail("a")
	if w.rollout("mac").Failures != 2 || w.state().Pools["mac"].Failures != 1 {
		t.Errorf("%+v, pools %+v", w.rollout("mac"), w.state().Pools)
	}
	id := w.placed(h, "b")
	if !w.rollout("mac").TriedAt.IsZero() {
		t.Error("tried before a guest answered")
	}
	at := w.Add(time.Second)
	w.report(h, w.others(h, said(id, fleet.ObservedStandby))...)
	if got := w.rollout("mac").TriedAt; !got.Equal(at) {
		t.Errorf("tried at %s", got)
	}
}

// What a host is to fetch is stored with it, raises its revision, and is told to it.
func TestFetches(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "minifleet.db")
	w := newWorld(t, func(t *testing.T, now func() time.Time) *store.Store { return openAt(t, path, now) })
	h, other := w.host("h", 1), w.host("other", 1)
	before, others := w.desired(h), w.desired(other)
	woken := w.s.HostChanged(h)
	list := []fleet.Prefetch{{Image: image("a"), Hold: true}, {Image: image("b"), BytesPerSecond: 5, Turn: w.Now()}}
	if done := w.carry(fleet.Plan{Fetches: []fleet.Fetch{{Host: h, Images: list}, {Host: "h-gone", Images: list}}}); done.Done != 1 || done.Void != 1 {
		t.Errorf("%+v", done)
	}
	d := w.desired(h)
	if diff := cmp.Diff(list, d.Images); diff != "" || d.Revision != before.Revision+1 || !closed(woken) {
		t.Errorf("revision %d after %d (-want +got):\n%s", d.Revision, before.Revision, diff)
	}
	if w.desired(other).Revision != others.Revision {
		t.Error("another host is told too")
	}
	w.must(w.s.Close())
	next := &world{T: t, clock: w.clock, s: openAt(t, path, w.Now)}
	if diff := cmp.Diff(list, next.desired(h).Images); diff != "" {
		t.Errorf("after a restart (-want +got):\n%s", diff)
	}
	next.carry(fleet.Plan{Fetches: []fleet.Fetch{{Host: h}}})
	if got := next.desired(h).Images; got != nil {
		t.Errorf("%+v", got)
	}
}

// reportImages sends a report of nothing but images.
func (w *world) reportImages(h fleet.HostID, images ...fleet.CachedImage) {
	w.Helper()
	w.sequence[h]++
	w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: w.sequence[h], Facts: w.factsOf(h), Images: images}, live))
}

// How far images are is known at once and written nowhere; decisions are woken when one
// has another state, and not by every byte.
func TestCachedImages(t *testing.T) {
	t.Parallel()
	for _, busy := range []bool{false, true} { // with a runner every report is written down
		w := newWorld(t, openSQLite)
		h := w.host("h", 2)
		w.report(h)
		send := func(images ...fleet.CachedImage) { w.reportImages(h, images...) }
		if busy {
			id := w.standby(h)
			send = func(images ...fleet.CachedImage) {
				w.Helper()
				w.sequence[h]++
				w.must(w.s.Report(w.ctx(), h, fleet.HostReport{
					Instance: "agent-1", Sequence: w.sequence[h], Facts: w.factsOf(h), Runners: []fleet.RunnerReport{said(id, fleet.ObservedStandby)}, Images: images,
				}, live))
			}
		}
		a := fleet.CachedImage{Image: image("a"), Digest: digest("a"), State: fleet.CacheFetching, TotalBytes: 9}
		for i, step := range []struct {
			edit  func()
			wakes bool
			moved bool
		}{
			{func() {}, true, true},
			{func() {}, false, false},
			{func() { a.DoneBytes = 4 }, false, true},
			{func() { a.FetchedBytes = 4 }, false, false},
			{func() { a.State, a.DoneBytes = fleet.CacheWhole, 9 }, true, true},
		} {
			step.edit()
			at := w.Add(time.Second)
			w.state() // a list that is up to date
			changed := w.s.Changed()
			send(a)
			if closed(changed) != step.wakes {
				t.Errorf("busy %t, step %d: a decision is woken: %t", busy, i, !step.wakes)
			}
			if !step.wakes {
				w.Add(time.Second) // what is listed may be that old
			}
			got := w.state().Hosts[0].Cached
			if len(got) != 1 || got[0].State != a.State || got[0].DoneBytes != a.DoneBytes || got[0].MovedAt.Equal(at) != step.moved {
				t.Errorf("busy %t, step %d: %+v at %s", busy, i, got, at)
			}
			if shown := w.hostNow(h).Cached; !cmp.Equal(shown, got) {
				t.Errorf("busy %t, step %d: shown %+v", busy, i, shown)
			}
		}
		stale := a
		stale.State = fleet.CacheFailed
		w.must(w.s.Report(w.ctx(), h, fleet.HostReport{Instance: "agent-1", Sequence: 1, Facts: w.factsOf(h), Images: []fleet.CachedImage{stale}}, live))
		if got := w.hostNow(h).Cached; got[0].State != fleet.CacheWhole {
			t.Errorf("an older report is taken: %+v", got)
		}
		changed := w.s.Changed()
		send()
		if got := w.hostNow(h).Cached; len(got) != 0 || !closed(changed) {
			t.Errorf("%+v", got)
		}
		send(a)
		w.must(w.s.RemoveHost(w.ctx(), h))
		if hosts := w.state().Hosts; len(hosts) != 0 {
			t.Errorf("%+v", hosts)
		}
	}
}

// A database of the schema before has neither rollouts nor images, and all that it had.
func TestDatabaseWithoutRollouts(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "minifleet.db")
	db, err := sql.Open("sqlite", "file:"+path)
	if err != nil {
		t.Fatal(err)
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, db, os.DirFS("migrations"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.UpTo(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	for _, row := range []string{
		`INSERT INTO meta (name, value) VALUES ('site', 'abcdefgh'), ('epoch', '1')`,
		`INSERT INTO hosts (id, name, credential_hash, slots, backends, images, os, arch, agent_version, degraded, revision, instance, sequence, machine, seen_at, back_at, failures, failed_at, created_at)
			VALUES ('h-1', 'mini', 'c', 2, '["vz"]', '["sonoma"]', 'darwin', 'arm64', '1', '', 4, 'agent-1', 9, 'm', 1, 1, 0, 0, 1)`,
		`INSERT INTO runners (id, pool, host, reason, wanted, scope, armed_at, retired_at, retired, observed, holds_slot, has_config, failure, result, progress, took,
			registration, runner_name, github_id, attempt, delete_after, job, job_done, since, moved_at, created_at, version, is_over)
			VALUES ('r-1', 'mac', 'h-1', 'x', 'up', '', 0, 0, '', 'standby', 1, 0, '', '', '', '', '', '', 0, 0, 0, 0, 0, 1, 1, 1, 3, 0)`,
	} {
		if _, err := db.ExecContext(t.Context(), row); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Close(), db.Close()); err != nil && !strings.Contains(err.Error(), "closed") {
		t.Fatal(err)
	}
	c := &clock{t: epoch}
	w := &world{T: t, clock: c, s: openAt(t, path, c.Now), sequence: map[fleet.HostID]int64{}}
	st := w.state()
	if w.s.Site() != "abcdefgh" || len(st.Hosts) != 1 || len(st.Runners) != 1 || st.Runners[0].Image != "" || st.Hosts[0].Prefetch != nil || len(st.Rollouts) != 0 {
		t.Errorf("%s %+v", w.s.Site(), st)
	}
	w.rolling()
	if done := w.carry(fleet.Plan{
		Places:  []fleet.Place{{Pool: "mac", Image: image("a"), Host: "h-1", Reason: "test"}},
		Fetches: []fleet.Fetch{{Host: "h-1", Images: []fleet.Prefetch{{Image: image("b")}}}},
	}); done.Done != 2 {
		t.Errorf("%+v", done)
	}
	d := w.desired("h-1")
	if !slices.ContainsFunc(d.Runners, func(r fleet.DesiredRunner) bool { return r.ID == "r-1" && r.Image == "" }) || len(d.Images) != 1 {
		t.Errorf("%+v", d)
	}
	w.mirrored()
}
