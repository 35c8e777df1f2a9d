// SPDX-License-Identifier: MIT

package autoscaler_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/autoscaler/books"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/store"
)

// twin writes everything into the books and into a store over SQLite, and sees that
// both say the same of it: answers, errors, and all that a decision reads.
type twin struct {
	*books.Books
	t       *testing.T
	s       *store.Store
	runners map[fleet.RunnerID]fleet.RunnerID // the store's name of each of ours
	ours    map[fleet.RunnerID]fleet.RunnerID // and back
	hosts   map[fleet.HostID]fleet.HostID
	writes  int
}

func newTwin(t *testing.T, w *world) *twin {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "x.db"), Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	x := &twin{
		Books: w.books, t: t, s: s,
		runners: map[fleet.RunnerID]fleet.RunnerID{}, ours: map[fleet.RunnerID]fleet.RunnerID{}, hosts: map[fleet.HostID]fleet.HostID{},
	}
	for _, h := range w.hosts {
		if err := s.AddEnrolment(t.Context(), fleet.Enrolment{TokenHash: h.name, ExpiresAt: w.now.Add(time.Hour)}, 1); err != nil {
			t.Fatal(err)
		}
		got, err := s.Enrol(t.Context(), h.name, h.name, h.name, "machine")
		if err != nil {
			t.Fatal(err)
		}
		x.hosts[h.id] = got.ID
	}
	return x
}

// same compares what came of one write.
func (x *twin) same(what string, ours, theirs error) error {
	for _, known := range []error{fleet.ErrWrongHost, fleet.ErrRunnerBusy, fleet.ErrNoGrant, fleet.ErrLater, fleet.ErrNotFound, fleet.ErrSuperseded} {
		if errors.Is(ours, known) != errors.Is(theirs, known) {
			return fmt.Errorf("%s: the books say %w, the store %w", what, ours, theirs)
		}
	}
	if (ours == nil) != (theirs == nil) {
		return fmt.Errorf("%s: the books say %w, the store %w", what, ours, theirs)
	}
	x.writes++
	a, _ := x.Books.State(x.t.Context())
	b, err := x.s.State(x.t.Context())
	if err != nil {
		return err
	}
	if diff := cmp.Diff(x.plain(a), x.plain(b)); diff != "" {
		return fmt.Errorf("%s: the books and the store differ (-books +store):\n%s", what, diff)
	}
	return ours
}

// plain leaves out of a state what only one side has, in an order that both have.
func (x *twin) plain(s fleet.State) fleet.State {
	s.Runners, s.Hosts, s.Jobs = slices.Clone(s.Runners), slices.Clone(s.Hosts), append([]fleet.Job{}, s.Jobs...)
	for i := range s.Runners {
		r := &s.Runners[i]
		if own, ok := x.ours[r.ID]; ok {
			r.ID = own
		}
		for own, id := range x.hosts {
			if r.Host == id {
				r.Host = own
			}
		}
		r.Reason = "" // it names the host
	}
	slices.SortFunc(s.Runners, func(a, b fleet.Runner) int { return strings.Compare(string(a.ID), string(b.ID)) })
	s.Runners = append([]fleet.Runner{}, s.Runners...)
	for i, h := range s.Hosts {
		s.Hosts[i] = fleet.Host{
			Name: h.Name, Slots: h.Slots, Backends: h.Backends, Images: h.Images, Instance: h.Instance,
			SeenAt: h.SeenAt, BackAt: h.BackAt, Failures: h.Failures, FailedAt: h.FailedAt,
			Prefetch: h.Prefetch, Cached: h.Cached,
		}
	}
	if len(s.Refused) == 0 {
		s.Refused = nil
	}
	if len(s.Rollouts) == 0 {
		s.Rollouts = nil
	}
	return s
}

// theirs is a plan in the store's names.
func (x *twin) theirs(p fleet.Plan) fleet.Plan {
	p.Places, p.Arms, p.Disarms = slices.Clone(p.Places), slices.Clone(p.Arms), slices.Clone(p.Disarms)
	p.Retires, p.Deletes = slices.Clone(p.Retires), slices.Clone(p.Deletes)
	for i := range p.Places {
		p.Places[i].Host = x.hosts[p.Places[i].Host]
	}
	p.Fetches = slices.Clone(p.Fetches)
	for i := range p.Fetches {
		p.Fetches[i].Host = x.hosts[p.Fetches[i].Host]
	}
	for i := range p.Arms {
		p.Arms[i].Runner = x.runners[p.Arms[i].Runner]
	}
	for i := range p.Disarms {
		p.Disarms[i].Runner = x.runners[p.Disarms[i].Runner]
	}
	for i := range p.Retires {
		p.Retires[i].Runner = x.runners[p.Retires[i].Runner]
	}
	for i := range p.Deletes {
		p.Deletes[i].Runner = x.runners[p.Deletes[i].Runner]
	}
	return p
}

func (x *twin) Carry(ctx context.Context, p fleet.Plan) (fleet.Carried, error) {
	b, _ := x.Books.Carry(ctx, p)
	s, err := x.s.Carry(ctx, x.theirs(p))
	if err != nil || b.Done != s.Done || b.Void != s.Void || len(b.Placed) != len(s.Placed) {
		return b, fmt.Errorf("carry: the books say %+v, the store %+v, %w", b, s, err)
	}
	for i := range b.Placed {
		x.runners[b.Placed[i]], x.ours[s.Placed[i]] = s.Placed[i], b.Placed[i]
	}
	for i := range s.Deletes {
		s.Deletes[i].Runner = x.ours[s.Deletes[i].Runner]
	}
	if diff := cmp.Diff(b.Deletes, s.Deletes); diff != "" {
		return b, fmt.Errorf("carry: deletions (-books +store):\n%s", diff)
	}
	return b, x.same("carry", nil, nil)
}

func (x *twin) Hello(ctx context.Context, id fleet.HostID, instance, machine string, facts fleet.HostFacts, live time.Duration) error {
	return x.same("hello", x.Books.Hello(ctx, id, instance, machine, facts, live), x.s.Hello(ctx, x.hosts[id], instance, machine, facts, live))
}

func (x *twin) Heard(ctx context.Context, id fleet.HostID, instance string, live time.Duration) error {
	return x.same("heard", x.Books.Heard(ctx, id, instance, live), x.s.Heard(ctx, x.hosts[id], instance, live))
}

func (x *twin) Report(ctx context.Context, id fleet.HostID, rep fleet.HostReport, live time.Duration) error {
	ours := x.Books.Report(ctx, id, rep, live)
	rep.Runners = slices.Clone(rep.Runners)
	for i := range rep.Runners {
		rep.Runners[i].ID = x.runners[rep.Runners[i].ID]
	}
	return x.same("report", ours, x.s.Report(ctx, x.hosts[id], rep, live))
}

func (x *twin) Learn(ctx context.Context, n fleet.JobNews) error {
	return x.same("learn", x.Books.Learn(ctx, n), x.s.Learn(ctx, n))
}

func (x *twin) BeginMint(ctx context.Context, host fleet.HostID, id fleet.RunnerID, name string) (fleet.Mint, error) {
	b, ours := x.Books.BeginMint(ctx, host, id, name)
	s, theirs := x.s.BeginMint(ctx, x.hosts[host], x.runners[id], name)
	s.Runner = id
	if diff := cmp.Diff(b, s); ours == nil && diff != "" {
		return b, fmt.Errorf("begin mint (-books +store):\n%s", diff)
	}
	return b, x.same("begin mint", ours, theirs)
}

func (x *twin) Granted(ctx context.Context, id fleet.RunnerID, attempt int, githubID int64) error {
	return x.same("granted", x.Books.Granted(ctx, id, attempt, githubID), x.s.Granted(ctx, x.runners[id], attempt, githubID))
}

func (x *twin) MintRefused(ctx context.Context, id fleet.RunnerID, attempt int, why string, lasts bool) error {
	return x.same("refused", x.Books.MintRefused(ctx, id, attempt, why, lasts), x.s.MintRefused(ctx, x.runners[id], attempt, why, lasts))
}

func (x *twin) RegistrationDeleted(ctx context.Context, id fleet.RunnerID, attempt int) error {
	return x.same("deleted", x.Books.RegistrationDeleted(ctx, id, attempt), x.s.RegistrationDeleted(ctx, x.runners[id], attempt))
}

func (x *twin) DeleteVetoed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return x.same("vetoed", x.Books.DeleteVetoed(ctx, id, attempt, retry), x.s.DeleteVetoed(ctx, x.runners[id], attempt, retry))
}

func (x *twin) DeleteFailed(ctx context.Context, id fleet.RunnerID, attempt int, retry time.Time) error {
	return x.same("not deleted", x.Books.DeleteFailed(ctx, id, attempt, retry), x.s.DeleteFailed(ctx, x.runners[id], attempt, retry))
}

func (x *twin) ConfigureRollouts(ctx context.Context, pools []fleet.Pool) error {
	return x.same("configure", x.Books.ConfigureRollouts(ctx, pools), x.s.ConfigureRollouts(ctx, pools))
}

func (x *twin) ImageResolved(ctx context.Context, reference, digest string) error {
	return x.same("resolved", x.Books.ImageResolved(ctx, reference, digest), x.s.ImageResolved(ctx, reference, digest))
}

func (x *twin) ImageUnresolved(ctx context.Context, reference, why string) error {
	return x.same("unresolved", x.Books.ImageUnresolved(ctx, reference, why), x.s.ImageUnresolved(ctx, reference, why))
}

func (x *twin) ChangeRollout(ctx context.Context, pool string, next func(fleet.Rollout, time.Time) (fleet.Rollout, error)) (fleet.Rollout, error) {
	is, ours := x.Books.ChangeRollout(ctx, pool, next)
	_, theirs := x.s.ChangeRollout(ctx, pool, next)
	if (ours == nil) != (theirs == nil) {
		return is, fmt.Errorf("change: the books say %w, the store %w", ours, theirs)
	}
	if err := x.same("change", nil, nil); err != nil {
		x.t.Error(err)
	}
	return is, ours
}

// telling returns the seeds, of the first so many, whose traces show the most kinds of
// things that the ones before did not.
func telling(t *testing.T, of uint64, most int) (out []uint64) {
	t.Helper()
	digits := regexp.MustCompile(`[0-9]+`)
	kinds := make([]map[string]bool, of)
	for seed := range of {
		_, w := play(t.Context(), seed, trace(seed, 60, false), true)
		kinds[seed] = map[string]bool{}
		for _, line := range w.log {
			if kind := digits.ReplaceAllString(line, ""); !strings.Contains(kind, "carried out") {
				kinds[seed][kind] = true
			}
		}
	}
	for range most {
		best := uint64(0)
		for seed := range of {
			if len(kinds[seed]) > len(kinds[best]) {
				best = seed
			}
		}
		if len(kinds[best]) == 0 {
			break
		}
		out = append(out, best)
		shown := maps.Clone(kinds[best])
		for _, k := range kinds {
			maps.DeleteFunc(k, func(kind string, _ bool) bool { return shown[kind] })
		}
	}
	return out
}

// The books of the model are the store: the same writes over SQLite have the same
// answers, and leave the same state after each of them.
func TestBooksAreTheStore(t *testing.T) {
	t.Parallel()
	seeds, most := uint64(1000), 24
	if testing.Short() || raced {
		seeds, most = 100, 6
	}
	for _, seed := range telling(t, seeds, most) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t.Context(), seed)
			x := newTwin(t, w)
			w.ledger, w.say = x, true
			if failure := w.play(trace(seed, 60, false)); failure != "" {
				t.Fatalf("%s\n%s", failure, strings.Join(w.log, "\n"))
			}
			t.Logf("%d writes", x.writes)
		})
	}
}
