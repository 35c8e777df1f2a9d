// SPDX-License-Identifier: MIT

package fleet_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

// meaning says what an event tells: which state, and whether it is GitHub's own
// answer.
func meaning(t *testing.T, e fleet.JobEvent) (to fleet.JobState, seen bool) {
	t.Helper()
	switch e {
	case "told_waiting":
		return "waiting", false
	case "told_queued":
		return "queued", false
	case "told_in_progress":
		return "in_progress", false
	case "told_completed":
		return "completed", false
	case "seen_waiting":
		return "waiting", true
	case "seen_queued":
		return "queued", true
	case "seen_in_progress":
		return "in_progress", true
	case "seen_completed":
		return "completed", true
	default:
		t.Fatalf("event %q has no meaning here", e)
		return "", false
	}
}

func TestJobStateEveryPair(t *testing.T) {
	t.Parallel()
	order := []fleet.JobState{"", "waiting", "queued", "in_progress", "completed"}
	if diff := cmp.Diff(order, fleet.JobStates()); diff != "" {
		t.Fatalf("states:\n%s", diff)
	}
	if n := len(fleet.JobEvents()); n != 8 {
		t.Fatalf("%d events, want 8", n)
	}
	for from, s := range order {
		for _, e := range fleet.JobEvents() {
			to, seen := meaning(t, e)
			want := s
			switch {
			case s == "completed":
			case seen || slices.Index(order, to) > from:
				want = to
			}
			if got := s.Next(e); got != want {
				t.Errorf("%q on %s: got %q, want %q", s, e, got, want)
			}
		}
	}
}

func TestJobStateLaws(t *testing.T) {
	t.Parallel()
	rank := func(s fleet.JobState) int { return slices.Index(fleet.JobStates(), s) }
	for _, s := range fleet.JobStates() {
		for _, e := range fleet.JobEvents() {
			to, seen := meaning(t, e)
			once := s.Next(e)
			if once.Next(e) != once {
				t.Errorf("%q on %s twice: %q, once %q", s, e, once.Next(e), once)
			}
			if rank(once) < 0 {
				t.Errorf("%q on %s leaves the table: %q", s, e, once)
			}
			if !seen && rank(once) < rank(s) {
				t.Errorf("%q on %s goes back to %q", s, e, once)
			}
			if seen && s != fleet.JobCompleted && once != to {
				t.Errorf("%q on %s: GitHub's own answer is not believed: %q", s, e, once)
			}
			for _, f := range fleet.JobEvents() {
				if _, seen2 := meaning(t, f); !seen && !seen2 && s.Next(e).Next(f) != s.Next(f).Next(e) {
					t.Errorf("%q: order of %s and %s matters", s, e, f)
				}
			}
		}
		if s.Next("no such event") != s {
			t.Errorf("%q moves on an unknown event", s)
		}
	}
}

func TestToldAndSeen(t *testing.T) {
	t.Parallel()
	for _, s := range append(fleet.JobStates(), "pending", "requested", "QUEUED") {
		isState := slices.Contains([]fleet.JobState{"waiting", "queued", "in_progress", "completed"}, s)
		told, ok := fleet.Told(s)
		if ok != isState || (ok && told != fleet.JobEvent("told_"+s)) {
			t.Errorf("Told(%q) = %q, %t", s, told, ok)
		}
		seen, ok := fleet.Seen(s)
		if ok != isState || (ok && seen != fleet.JobEvent("seen_"+s)) {
			t.Errorf("Seen(%q) = %q, %t", s, seen, ok)
		}
	}
}

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// deliveries of one job's whole life, as GitHub sends them.
func deliveries() []fleet.JobNews {
	base := fleet.Job{
		ID: 7, RunID: 70, RunAttempt: 1, InstallationID: 700, Owner: "acme", Repo: "app", Workflow: "ci", Name: "build",
		Labels: fleet.NewLabels("macos", "arm64"), URL: "https://example.test/7", CreatedAt: began,
	}
	started, ended := base, base
	started.RunnerName = "mf-1"
	ended.RunnerName, ended.Conclusion = "mf-1", "success"
	return []fleet.JobNews{
		{Event: fleet.ToldWaiting, Job: base},
		{Event: fleet.ToldQueued, Job: base},
		{Event: fleet.ToldInProgress, Job: started},
		{Event: fleet.ToldCompleted, Job: ended},
	}
}

// permutations calls f with every order of the numbers below n.
func permutations(n int, f func([]int)) {
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

// Webhooks come late, twice and in any order: what is known at the end is the same.
func TestLearnInEveryOrder(t *testing.T) {
	t.Parallel()
	all := deliveries()
	want := all[3].Job
	want.State = fleet.JobCompleted
	permutations(len(all), func(order []int) {
		for _, repeat := range []bool{false, true} {
			var j fleet.Job
			now := began
			var completedAt time.Time
			for _, i := range order {
				for range map[bool]int{false: 1, true: 2}[repeat] {
					now = now.Add(time.Second)
					j = j.Learn(all[i], now)
				}
				if i == 3 && completedAt.IsZero() {
					completedAt = j.CompletedAt
				}
			}
			if !j.HeardAt.Equal(began.Add(time.Second)) {
				t.Errorf("order %v: heard at %s", order, j.HeardAt)
			}
			if completedAt.IsZero() || !j.CompletedAt.Equal(completedAt) {
				t.Errorf("order %v: completion moved from %s to %s", order, completedAt, j.CompletedAt)
			}
			if !j.ToldAt.Equal(now) || !j.AskedAt.IsZero() {
				t.Errorf("order %v: told at %s, asked at %s", order, j.ToldAt, j.AskedAt)
			}
			got := j
			got.ToldAt = time.Time{}
			got.HeardAt, got.QueuedAt, got.StartedAt, got.CompletedAt = time.Time{}, time.Time{}, time.Time{}, time.Time{}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("order %v, repeated %t (-want +got):\n%s", order, repeat, diff)
			}
		}
	})
}

func TestLearn(t *testing.T) {
	t.Parallel()
	all := deliveries()
	life := func(news ...fleet.JobNews) fleet.Job {
		var j fleet.Job
		for i, n := range news {
			j = j.Learn(n, began.Add(time.Duration(i+1)*time.Second))
		}
		return j
	}
	at := func(i int) time.Time { return began.Add(time.Duration(i) * time.Second) }
	seen := func(e fleet.JobEvent, edit func(*fleet.Job)) fleet.JobNews {
		n := fleet.JobNews{Event: e, Job: all[1].Job}
		if edit != nil {
			edit(&n.Job)
		}
		return n
	}
	t.Run("the clocks start once", func(t *testing.T) {
		t.Parallel()
		j := life(all[1], all[1], all[2], all[2], all[1], all[3], all[3])
		for what, pair := range map[string][2]time.Time{
			"heard": {j.HeardAt, at(1)}, "queued": {j.QueuedAt, at(1)}, "started": {j.StartedAt, at(3)}, "completed": {j.CompletedAt, at(6)},
		} {
			if !pair[0].Equal(pair[1]) {
				t.Errorf("%s at %s, want %s", what, pair[0], pair[1])
			}
		}
	})
	t.Run("taken back by GitHub", func(t *testing.T) {
		t.Parallel()
		j := life(all[1], all[2], seen(fleet.SeenQueued, nil))
		if j.State != fleet.JobQueued || j.RunnerName != "" || !j.QueuedAt.Equal(at(1)) {
			t.Errorf("state %q, runner %q, queued %s", j.State, j.RunnerName, j.QueuedAt)
		}
		j = j.Learn(seen(fleet.SeenInProgress, func(j *fleet.Job) { j.RunnerName = "mf-2" }), at(9))
		if j.State != fleet.JobInProgress || j.RunnerName != "mf-2" {
			t.Errorf("state %q, runner %q", j.State, j.RunnerName)
		}
	})
	t.Run("late news of an earlier runner changes nothing of a completed job", func(t *testing.T) {
		t.Parallel()
		other := all[3]
		other.Job.RunnerName = "mf-2"
		j := life(all[1], other, all[2])
		if j.RunnerName != "mf-2" || j.Conclusion != "success" || j.State != fleet.JobCompleted {
			t.Errorf("runner %q, conclusion %q, state %q", j.RunnerName, j.Conclusion, j.State)
		}
	})
	t.Run("a second conclusion is not believed", func(t *testing.T) {
		t.Parallel()
		again := all[3]
		again.Job.Conclusion = "failure"
		if j := life(all[3], again); j.Conclusion != "success" {
			t.Errorf("conclusion %q", j.Conclusion)
		}
	})
	t.Run("cancelled while queued", func(t *testing.T) {
		t.Parallel()
		end := all[1]
		end.Event, end.Job.Conclusion = fleet.ToldCompleted, "cancelled"
		j := life(all[1], end, all[1])
		if j.State != fleet.JobCompleted || j.RunnerName != "" || j.Conclusion != "cancelled" || !j.StartedAt.IsZero() {
			t.Errorf("%+v", j)
		}
	})
	t.Run("facts that the news lacks are kept", func(t *testing.T) {
		t.Parallel()
		bare := fleet.JobNews{Event: fleet.SeenInProgress, Job: fleet.Job{ID: 7, RunnerName: "mf-1"}}
		got, want := life(all[1], bare), life(all[1], all[2])
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
	t.Run("a queued job has no runner and no conclusion whatever the news says", func(t *testing.T) {
		t.Parallel()
		n := seen(fleet.ToldQueued, func(j *fleet.Job) { j.RunnerName, j.Conclusion = "mf-9", "success" })
		if j := life(n); j.RunnerName != "" || j.Conclusion != "" {
			t.Errorf("runner %q, conclusion %q", j.RunnerName, j.Conclusion)
		}
	})
}

// An answer counts from the moment at which GitHub was asked for it.
func TestLearnFromAnswers(t *testing.T) {
	t.Parallel()
	at := func(i int) time.Time { return began.Add(time.Duration(i) * time.Second) }
	answer := func(asked int, e fleet.JobEvent) fleet.JobNews {
		n := fleet.JobNews{Event: e, Asked: at(asked), Job: deliveries()[1].Job}
		switch e {
		case fleet.SeenInProgress:
			n.Job.RunnerName = "mf-2"
		case fleet.SeenCompleted:
			n.Job.RunnerName, n.Job.Conclusion = "mf-2", "failure"
		}
		return n
	}
	told := deliveries()
	for name, c := range map[string]struct {
		news   []fleet.JobNews // each stored a second after the one before, from second 1 on
		state  fleet.JobState
		runner string
		asked  int // 0: never
		told   int
	}{
		"newer than the delivery":                          {[]fleet.JobNews{told[2], answer(2, fleet.SeenQueued)}, "queued", "", 2, 1},
		"asked for before the delivery":                    {[]fleet.JobNews{told[1], told[2], answer(1, fleet.SeenQueued)}, "in_progress", "mf-1", 1, 2},
		"asked for at the moment of the delivery":          {[]fleet.JobNews{told[2], answer(1, fleet.SeenQueued)}, "in_progress", "mf-1", 1, 1},
		"asked for before the delivery, and further on":    {[]fleet.JobNews{told[1], told[1], answer(1, fleet.SeenInProgress)}, "in_progress", "mf-2", 1, 2},
		"over, asked for before the delivery":              {[]fleet.JobNews{told[1], told[2], answer(1, fleet.SeenCompleted)}, "completed", "mf-2", 1, 2},
		"asked for before an answer that is stored":        {[]fleet.JobNews{answer(3, fleet.SeenInProgress), answer(1, fleet.SeenQueued)}, "in_progress", "mf-2", 3, 0},
		"two answers of one listing":                       {[]fleet.JobNews{answer(3, fleet.SeenInProgress), answer(3, fleet.SeenQueued)}, "queued", "", 3, 0},
		"never told, and told late":                        {[]fleet.JobNews{answer(1, fleet.SeenInProgress), told[1]}, "in_progress", "mf-2", 1, 2},
		"nothing of a completed one, however new it is":    {[]fleet.JobNews{told[3], answer(9, fleet.SeenQueued)}, "completed", "mf-1", 9, 1},
		"a deployment gate that was closed again, in time": {[]fleet.JobNews{told[1], answer(2, fleet.SeenWaiting)}, "waiting", "", 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var j fleet.Job
			for i, n := range c.news {
				j = j.Learn(n, at(i+1))
			}
			asked, told := time.Time{}, time.Time{}
			if c.asked > 0 {
				asked = at(c.asked)
			}
			if c.told > 0 {
				told = at(c.told)
			}
			if j.State != c.state || j.RunnerName != c.runner || !j.AskedAt.Equal(asked) || !j.ToldAt.Equal(told) {
				t.Errorf("state %q, runner %q, asked %s, told %s; want %+v", j.State, j.RunnerName, j.AskedAt, j.ToldAt, c)
			}
		})
	}
}

func ExampleJobState_Next() {
	s := fleet.JobInProgress
	fmt.Println(s.Next(fleet.ToldQueued), s.Next(fleet.SeenQueued))
	// Output: in_progress queued
}
