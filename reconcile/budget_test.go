// SPDX-License-Identifier: MIT

package reconcile_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/reconcile"
)

// server is GitHub with an hourly limit. Each look at a repository is some calls of it.
type server struct {
	*world
	limit, remaining int // limit 0: it has none
	reset            time.Time
	cost             func(repo fleet.Scope, look int) int // calls that are not free; nil: two
	looks            map[string][]time.Time
	spent            []time.Time // calls that were not free
	all              int
}

// called makes one call as its meter allows.
func (s *server) called(ctx context.Context, free bool) error {
	m := fleet.MeterOf(ctx)
	if m == nil {
		s.t.Error("a call without a meter")
		return nil
	}
	if err := m.Begin(ctx); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	time.Sleep(50 * time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if !now.Before(s.reset) {
		s.reset, s.remaining = now.Add(time.Hour), s.limit
	}
	s.all++
	if !free {
		s.spent = append(s.spent, now)
		s.remaining--
	}
	if s.remaining < 0 && s.limit > 0 {
		s.t.Fatal("the whole limit is used up")
	}
	rate := fleet.Rate{Limit: s.limit, Remaining: s.remaining, Reset: s.reset}
	if s.limit == 0 {
		rate = fleet.Rate{}
	}
	m.End(free, rate, true)
	return nil
}

func (s *server) ActiveJobs(ctx context.Context, repo fleet.Scope) ([]fleet.JobNews, error) {
	cost := 2
	if s.cost != nil {
		cost = s.cost(repo, len(s.looks[repo.Repo]))
	}
	for i := range max(2, cost) {
		if err := s.called(ctx, i >= cost); err != nil {
			return nil, err
		}
	}
	s.set(func() { s.looks[repo.Repo] = append(s.looks[repo.Repo], time.Now()) })
	return nil, nil
}

func (s *server) Covered(ctx context.Context, _ fleet.Scope) ([]fleet.Scope, error) {
	return s.covered, s.called(ctx, false)
}

func (s *server) Registrations(ctx context.Context, _ fleet.Scope) ([]fleet.Listed, error) {
	return nil, s.called(ctx, false)
}

func (s *server) Job(ctx context.Context, repo fleet.Scope, id fleet.JobID) (fleet.JobNews, bool, error) {
	if err := s.called(ctx, false); err != nil {
		return fleet.JobNews{}, false, err
	}
	return s.world.Job(ctx, repo, id)
}

// used returns the calls so far that were not free, and the repositories that were read.
func (s *server) used() (calls, repos int) {
	s.set(func() { calls, repos = len(s.spent), len(s.looks) })
	return calls, repos
}

// most returns the most calls of any hour.
func (s *server) most() int {
	most, first := 0, 0
	for i, at := range s.spent {
		for at.Sub(s.spent[first]) >= time.Hour {
			first++
		}
		most = max(most, i-first+1)
	}
	return most
}

// inHours runs a reconciler of an organization for some hours.
func inHours(t *testing.T, d time.Duration, percent int, setUp func(*server), then func(*testing.T, *server, *reconcile.Reconciler)) {
	t.Helper()
	in(t, func(t *testing.T, w *world) {
		s := &server{world: w, limit: 5000, remaining: 5000, reset: time.Now().Add(time.Hour), looks: map[string][]time.Time{}}
		setUp(s)
		r := reconcile.New(reconcile.Config{
			Store: w, GitHub: s, Learn: w.learn, Ours: func(string) bool { return false }, Percent: percent,
			Pools: []fleet.Pool{{Name: "mac", Labels: labs, Scopes: []fleet.Scope{{Owner: "octo"}}, Image: "i"}},
			Log:   slog.New(slog.NewTextHandler(&w.log, nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }()
		time.Sleep(d)
		synctest.Wait()
		then(t, s, r)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func repos(n int) (all []fleet.Scope) {
	for i := range n {
		all = append(all, fleet.Scope{Owner: "octo", Repo: fmt.Sprintf("r%03d", i)})
	}
	return all
}

// With 500 repositories, 100 of them in use, everything costs five times the share. No hour
// sees more than that, all are looked at, and those in use more often.
func TestBudgetHolds(t *testing.T) {
	inHours(t, 4*time.Hour, 30, func(s *server) {
		s.covered = repos(500)
		for _, repo := range s.covered[:100] {
			s.heard[repo] = time.Now().Add(100 * time.Hour) // and all the time
		}
	}, func(t *testing.T, s *server, r *reconcile.Reconciler) {
		if most := s.most(); most > 1500 || most < 1200 {
			t.Errorf("%d calls in one hour, want up to 1500 of 5000", most)
		}
		hot, cold := 0, 0
		for i, repo := range s.covered {
			looks := s.looks[repo.Repo]
			if len(looks) == 0 {
				t.Fatalf("%s was never looked at", repo)
			}
			if i < 100 {
				hot += len(looks)
			} else {
				cold += len(looks)
			}
		}
		if hot/100 < 5*cold/400 {
			t.Errorf("%d looks at each repository in use, %d at the others", hot/100, cold/400)
		}
		if !r.Fresh() || !strings.Contains(s.log.String(), "less often than configured") {
			t.Errorf("fresh %t", r.Fresh())
		}
	})
}

// What has not changed costs nothing of the limit, and everything is on time; GitHub's limit
// of a minute is kept all the same.
func TestUnchangedIsFree(t *testing.T) {
	inHours(t, 4*time.Hour, 30, func(s *server) {
		s.covered = repos(500)
		for _, repo := range s.covered[:250] {
			s.heard[repo] = time.Now().Add(100 * time.Hour)
		}
		s.cost = func(_ fleet.Scope, look int) int {
			if look > 0 {
				return 0
			}
			return 2
		}
	}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
		for i, repo := range s.covered {
			looks, longest := s.looks[repo.Repo], 75*time.Minute
			if i < 250 {
				longest = 6*time.Minute + 15*time.Second
			}
			if len(looks) < 2 {
				t.Fatalf("%s: %d looks", repo, len(looks))
			}
			for i := 1; i < len(looks); i++ {
				if every := looks[i].Sub(looks[i-1]); every > longest && looks[i-1].Sub(s.began) > 2*time.Hour { // all were read once
					t.Fatalf("%s: a look after %s", repo, every)
				}
			}
		}
		if most := s.most(); most > 1500 {
			t.Errorf("%d calls in one hour", most)
		}
	})
}

// Repositories of which nothing was ever heard are looked at after the start, spread over a
// while, and keep nobody from deciding.
func TestAllRepositoriesAtTheStart(t *testing.T) {
	inHours(t, 16*time.Minute, 30, func(s *server) {
		s.covered = append(repos(30), fleet.Scope{Owner: "other", Repo: "r"})
		s.heard[s.covered[7]] = time.Now()
	}, func(t *testing.T, s *server, r *reconcile.Reconciler) {
		for _, repo := range s.covered[:30] {
			if n := len(s.looks[repo.Repo]); n != 1 && repo != s.covered[7] || n == 0 {
				t.Errorf("%s was looked at %d times", repo, n)
			}
		}
		if len(s.looks["r"]) != 0 {
			t.Error("a repository that no pool serves was looked at")
		}
		if first := s.looks["r007"][0]; first.Sub(s.began) > 10*time.Second {
			t.Errorf("the one in use was looked at after %s", first.Sub(s.began))
		}
		if last := s.looks["r029"][0]; last.Sub(s.began) < 10*time.Minute {
			t.Errorf("the last one was looked at after %s already", last.Sub(s.began))
		}
	})
}

// When others have used up nearly all of the limit, nothing is looked at; what is in doubt is
// asked for while a twentieth is left.
func TestFloors(t *testing.T) {
	for remaining, want := range map[int][2]bool{1100: {true, true}, 999: {false, true}, 249: {false, false}} {
		t.Run(fmt.Sprint(remaining), func(t *testing.T) {
			inHours(t, 2*time.Minute, 30, func(s *server) {
				s.covered = repos(10)
				s.remaining = remaining + 1 // the first call tells how much is left
				s.reset = time.Now().Add(30 * time.Minute)
				j := job(1)
				j.Repo = "r001"
				s.books[1] = fleet.Job{}.Learn(fleet.JobNews{Event: fleet.ToldInProgress, Job: j}, time.Now())
				s.at(1, fleet.SeenCompleted)
			}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
				looked, _ := s.used()
				s.set(func() { // its runner has ended
					s.runners = []fleet.Runner{{
						ID: "r-1", Pool: "mac", Job: 1, Scope: fleet.Scope{Owner: "octo"}, HasConfig: true, Observed: fleet.ObservedGone,
						Registration: fleet.RegGone, Since: time.Now(), MovedAt: time.Now(),
					}}
					close(s.changed)
					s.changed = make(chan struct{})
				})
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if asked := s.count("job 1") > 0; asked != want[1] {
					t.Errorf("asked for the job %t, want %t", asked, want[1])
				}
				if more := looked > 3; more != want[0] {
					t.Errorf("%d calls", looked)
				}
				time.Sleep(50 * time.Minute) // GitHub's hour is over
				synctest.Wait()
				if _, read := s.used(); s.state(1) != fleet.JobCompleted || read < 10 {
					t.Errorf("after GitHub's hour: job %s, %d repositories", s.state(1), read)
				}
			})
		})
	}
}

// A repository with more active runs than can be asked for at once is read in several goes,
// each of which begins with what is free by then.
func TestOneLargeRepository(t *testing.T) {
	read := 0
	inHours(t, 3*time.Hour, 30, func(s *server) {
		s.covered = repos(1)
		s.heard[s.covered[0]] = time.Now().Add(100 * time.Hour)
		s.cost = func(fleet.Scope, int) int {
			before := len(s.spent)
			defer func() { read = before }()
			return max(2, 1000-before)
		}
	}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
		if len(s.looks["r000"]) == 0 || s.most() > 1500 {
			t.Errorf("%d looks, %d calls in one hour, read %d", len(s.looks["r000"]), s.most(), read)
		}
	})
}

// However much there is to look at, what is in doubt is asked for at once.
func TestDoubtsAreNotHeldUp(t *testing.T) {
	const jobs = 8
	inHours(t, 5*time.Second, 30, func(s *server) {
		s.covered = repos(2)
		s.heard[s.covered[0]] = time.Now().Add(100 * time.Hour)
		s.cost = func(fleet.Scope, int) int { return 10_000 }
		for id := range fleet.JobID(jobs) {
			j := job(id + 1)
			j.Repo = "r001"
			s.books[j.ID] = fleet.Job{}.Learn(fleet.JobNews{Event: fleet.ToldInProgress, Job: j}, time.Now())
			s.at(j.ID, fleet.SeenCompleted)
		}
	}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
		if calls, _ := s.used(); calls < 50 {
			t.Errorf("%d calls: nothing is used up", calls)
		}
		time.Sleep(time.Minute) // the rest of what can be spent at once
		synctest.Wait()
		s.set(func() { // their runners have ended
			for id := range fleet.JobID(jobs) {
				s.runners = append(s.runners, fleet.Runner{
					ID: fleet.RunnerID(fmt.Sprint("r-", id)), Pool: "mac", Job: id + 1, Scope: fleet.Scope{Owner: "octo"}, HasConfig: true,
					Observed: fleet.ObservedGone, Registration: fleet.RegGone, Since: time.Now(), MovedAt: time.Now(),
				})
			}
			close(s.changed)
			s.changed = make(chan struct{})
		})
		time.Sleep(14 * time.Second)
		synctest.Wait()
		for id := range fleet.JobID(jobs) {
			if s.state(id+1) != fleet.JobCompleted {
				t.Errorf("job %d is %s", id+1, s.state(id+1))
			}
		}
	})
}

// A server of one's own may have no limits.
func TestNoLimit(t *testing.T) {
	inHours(t, time.Hour, 1, func(s *server) {
		s.limit, s.covered = 0, repos(200)
		for _, repo := range s.covered {
			s.heard[repo] = time.Now().Add(100 * time.Hour)
		}
	}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
		for _, repo := range s.covered {
			if n := len(s.looks[repo.Repo]); n < 11 {
				t.Fatalf("%s was looked at %d times in an hour", repo, n)
			}
		}
	})
}

// GitHub's limit turns out to be another than was assumed: what is allowed goes with it at
// once.
func TestOtherLimits(t *testing.T) {
	for _, limit := range []int{15_000, 1_000_000_000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			inHours(t, 16*time.Minute, 30, func(s *server) {
				s.limit, s.remaining, s.covered = limit, limit, repos(50)
				for _, repo := range s.covered {
					s.heard[repo] = time.Now().Add(100 * time.Hour)
				}
			}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
				for _, repo := range s.covered {
					if n := len(s.looks[repo.Repo]); n < 4 {
						t.Errorf("%s was looked at %d times", repo, n)
					}
				}
			})
		})
	}
}

// A share that is tiny slows everything down and stops nothing.
func TestTinyShare(t *testing.T) {
	inHours(t, 24*time.Hour, 1, func(s *server) {
		s.covered = repos(30)
	}, func(t *testing.T, s *server, _ *reconcile.Reconciler) {
		if most := s.most(); most > 50 || len(s.looks) != 30 {
			t.Errorf("%d calls in one hour, %d repositories", most, len(s.looks))
		}
	})
}
