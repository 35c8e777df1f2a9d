// SPDX-License-Identifier: MIT

package reconcile

import (
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// never is no time from the moment at which a runner moved.
const never = time.Duration(-1)

// setup is a job and a runner, and when the job was asked for.
type setup struct {
	job   fleet.Job
	r     fleet.Runner
	asked time.Duration // after the runner moved; or never
}

// When a job is asked for, counted from the moment at which its runner moved.
func TestDoubts(t *testing.T) {
	t.Parallel()
	moved := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	octo := fleet.Scope{Owner: "octo"}
	pools := []fleet.Pool{{
		Name: "mac", Labels: fleet.NewLabels("macos"), Scopes: []fleet.Scope{octo}, Limits: fleet.Limits{Unnamed: 2 * time.Minute, Assignment: 4 * time.Minute},
	}}
	for name, c := range map[string]struct {
		edit func(*setup)
		due  time.Duration // from moved; never
	}{
		"listens, of a queued job":                   {func(*setup) {}, 2 * time.Minute},
		"listens, and the job came later":            {func(s *setup) { s.job.QueuedAt = moved.Add(time.Minute) }, 3 * time.Minute},
		"listens, and it was asked for before":       {func(s *setup) { s.asked = time.Minute }, 2 * time.Minute},
		"listens, and it was asked for just before":  {func(s *setup) { s.asked = 110 * time.Second }, 140 * time.Second},
		"listens, and it was asked for since":        {func(s *setup) { s.asked = 2 * time.Minute }, never},
		"listens, and the job runs":                  {func(s *setup) { s.job.State = fleet.JobInProgress }, never},
		"listens, and the job waits at a gate":       {func(s *setup) { s.job.State = fleet.JobWaiting }, never},
		"listens, and cannot be given the job":       {func(s *setup) { s.job.Labels = fleet.NewLabels("windows") }, never},
		"listens in another scope":                   {func(s *setup) { s.r.Scope.Owner = "acme" }, never},
		"listens, of a pool of the past":             {func(s *setup) { s.r.Pool = "old" }, never},
		"boots":                                      {func(s *setup) { s.r.Observed, s.r.Registration = fleet.ObservedBooting, fleet.RegNone }, never},
		"busy without a name":                        {func(s *setup) { s.r.Observed = fleet.ObservedBusy }, time.Minute},
		"busy with another job":                      {func(s *setup) { s.r.Observed, s.r.Job = fleet.ObservedBusy, 9 }, never},
		"ended with a job without a name":            {func(s *setup) { s.r.Observed, s.r.Result = fleet.ObservedFinished, "failed" }, 10 * time.Second},
		"broke down":                                 {func(s *setup) { s.r.Observed, s.r.Failure = fleet.ObservedGone, "lost" }, 10 * time.Second},
		"ended without a job":                        {func(s *setup) { s.r.Observed = fleet.ObservedGone }, never},
		"broke down before it had a config":          {func(s *setup) { s.r.Observed, s.r.Failure, s.r.HasConfig = fleet.ObservedFailed, "lost", false }, never},
		"ended, and its job runs":                    {ended, 10 * time.Second},
		"ended, and its job was asked for since":     {func(s *setup) { ended(s); s.asked = 20 * time.Second }, 140 * time.Second},
		"ended, and its job is known to be over":     {func(s *setup) { ended(s); s.r.JobDone = true }, never},
		"ended, and another's job runs":              {func(s *setup) { ended(s); s.r.Job = 9 }, never},
		"ended, and its job was taken from it again": {func(s *setup) { ended(s); s.job.State = fleet.JobQueued }, never},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := setup{
				job: fleet.Job{ID: 1, Owner: "octo", Repo: "demo", Labels: fleet.NewLabels("macos"), State: fleet.JobQueued, QueuedAt: moved.Add(-time.Hour)},
				r: fleet.Runner{
					ID: "r-1", Pool: "mac", Host: "h", Scope: octo, Wanted: fleet.WantArmed, Observed: fleet.ObservedIdle,
					Registration: fleet.RegMinted, HasConfig: true, Since: moved, MovedAt: moved,
				},
				asked: never,
			}
			c.edit(&s)
			at := func(d time.Duration) (ask bool, next time.Time) {
				asked := time.Time{}
				if s.asked != never && s.asked <= d {
					asked = moved.Add(s.asked)
				}
				list, next := doubts(moved.Add(d), pools, []fleet.Job{s.job}, []fleet.Runner{s.r}, func(fleet.Job) time.Time { return asked })
				return len(list) == 1, next
			}
			if c.due == never {
				if ask, next := at(9 * time.Minute); ask || !next.IsZero() {
					t.Errorf("asked for: %t, next %s", ask, next)
				}
				return
			}
			if ask, next := at(c.due - time.Millisecond); ask || !next.Equal(moved.Add(c.due)) {
				t.Errorf("just before: asked for %t, next after %s, want after %s", ask, next.Sub(moved), c.due)
			}
			if ask, _ := at(c.due); !ask {
				t.Errorf("not asked for after %s", c.due)
			}
		})
	}
}

// ended makes the runner one that has ended, and the job one that it ran.
func ended(s *setup) {
	s.job.State, s.r.Job, s.r.Observed, s.r.Registration = fleet.JobInProgress, 1, fleet.ObservedGone, fleet.RegGone
}

// GitHub cancels what is queued for a day: it is asked then, once.
func TestDoubtOfWhatIsQueuedForLong(t *testing.T) {
	t.Parallel()
	queued := time.Date(2026, 3, 1, 11, 0, 0, 0, time.UTC)
	j := fleet.Job{ID: 1, Owner: "octo", Repo: "demo", State: fleet.JobQueued, QueuedAt: queued}
	for after, want := range map[time.Duration]bool{fleet.LongestQueue - time.Second: false, fleet.LongestQueue: true, 30 * time.Hour: true} {
		for _, asked := range []time.Duration{0, 25 * time.Hour} {
			ask, _ := doubts(queued.Add(after), nil, []fleet.Job{j}, nil, func(fleet.Job) time.Time { return queued.Add(asked) })
			if want := want && asked == 0; len(ask) == 1 != want {
				t.Errorf("%s after it was queued, asked after %s: asked for again: %t", after, asked, !want)
			}
		}
	}
}
