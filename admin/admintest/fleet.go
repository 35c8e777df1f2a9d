// SPDX-License-Identifier: MIT

package admintest

import (
	"strings"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// Now is the moment at which Sample is true.
func Now() time.Time { return time.Date(2026, 11, 2, 10, 30, 0, 0, time.UTC) }

// before is a moment before Now, in another zone and finer than the API shows.
func before(d time.Duration) time.Time {
	return Now().Add(-d + 789).In(time.FixedZone("east", 3600))
}

// Pools returns the pools of Sample.
func Pools() []fleet.Pool {
	return []fleet.Pool{
		{
			Name: "macos-15", Labels: fleet.NewLabels("self-hosted", "macOS", "arm64"), LabelNames: []string{"self-hosted", "macOS", "arm64"},
			Scopes: []fleet.Scope{{Owner: "acme"}, {Owner: "zeta", Repo: "tool"}}, Image: "gs://images/mac/sequoia:stable", Backend: "vz", Canary: fleet.Canary{Percent: 10, For: time.Hour},
			CPUs: 4, MemoryMiB: 8192, MaxRunners: 6, Standby: 1, RunnerGroup: "minis",
		},
		{Name: "linux", Labels: fleet.NewLabels("linux"), Scopes: []fleet.Scope{{Owner: "acme", Repo: "app"}}, Image: "noble"},
	}
}

// Sample returns a small fleet in the middle of its work: one row of each kind
// with every field, one with as few as there can be.
func Sample() *Store {
	return &Store{
		Token: secret.New("enrol-once-0123456789"),
		Jobs:  sampleJobs(), Runners: sampleRunners(), Hosts: sampleHosts(),
		Rolling: map[string]fleet.Rollout{"macos-15": {
			Pool: "macos-15", Reference: "gs://images/mac/sequoia:stable", Tagged: digest("b"),
			Current: image("a"), Next: image("b"), Previous: image("c"), Note: "2 of 2 hosts hold it",
			StartedAt: before(10 * time.Minute), TriedAt: before(5 * time.Minute), PromotedAt: before(24 * time.Hour),
			Failures: 1, FailedAt: before(4 * time.Minute), Failure: "booting for longer than 5m0s",
			Error: "403 Forbidden", ErrorAt: before(2 * time.Minute), Version: 4,
		}},
		Ages: map[string]fleet.RunnerHealth{
			"macos-15": {Version: "2.330.0", Newest: "2.337.0", BehindSince: before(31 * 24 * time.Hour), Age: fleet.RunnerTooOld},
			"linux":    {Age: fleet.RunnerUnknown},
		},
		Waits: map[fleet.JobID]fleet.Wait{
			15: {Job: 15, Code: fleet.WaitBooting, Reason: "runner r-boot is booting on mini-1", Runner: "r-boot"},
			14: {Job: 14, Code: fleet.WaitNoPool, Reason: "no pool has the labels gpu"},
		},
		Moments: map[fleet.RunnerID][]fleet.Moment{"r-busy": {
			{At: before(5 * time.Minute), Phase: fleet.PhasePlaced, Detail: "most free slots"},
			{At: before(5*time.Minute - 250*time.Millisecond), Phase: fleet.PhaseBooting},
			{At: before(4 * time.Minute), Phase: fleet.PhaseBusy, Detail: "job 12"},
		}},
		Deliveries: []fleet.DeliverySummary{
			{
				GUID: "7f0e", Event: "workflow_job", Action: "queued", Repository: "acme/app", InstallationID: 77,
				ReceivedAt: before(30 * time.Second), Status: fleet.DeliveryFailed, Reason: "workflow_job: no id", Times: 2,
			},
			{GUID: "6a11", Event: "ping", ReceivedAt: before(time.Hour), Status: fleet.DeliveryProcessed, Times: 1},
		},
	}
}

func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

func image(letter string) string { return "gs://images/mac/sequoia@" + digest(letter) }

func sampleJobs() []fleet.Job {
	job := func(id fleet.JobID, state fleet.JobState) fleet.Job {
		return fleet.Job{
			ID: id, RunID: 5, RunAttempt: 1, InstallationID: 77, Owner: "acme", Repo: "app", Workflow: "CI", Name: "build",
			Labels: fleet.NewLabels("self-hosted", "macos"), State: state, URL: "https://github.com/acme/app/actions/runs/5",
			CreatedAt: before(6 * time.Minute), HeardAt: before(6 * time.Minute),
		}
	}
	gate := job(16, fleet.JobWaiting)
	queued, hopeless, undecided := job(15, fleet.JobQueued), job(14, fleet.JobQueued), job(13, fleet.JobQueued)
	queued.QueuedAt, hopeless.QueuedAt, undecided.QueuedAt = before(3*time.Minute), before(3*time.Minute), before(time.Second)
	hopeless.Repo, hopeless.RunID, hopeless.Labels = "web", 6, fleet.NewLabels("gpu")
	running, elsewhere, unnamed := job(12, fleet.JobInProgress), job(11, fleet.JobInProgress), job(10, fleet.JobInProgress)
	for _, j := range []*fleet.Job{&running, &elsewhere, &unnamed} {
		j.QueuedAt, j.StartedAt = before(5*time.Minute), before(4*time.Minute)
	}
	running.RunnerName, elsewhere.RunnerName = "mf-s1te-macos-15-busy", "their-own-machine"
	done, canceled := job(9, fleet.JobCompleted), job(8, fleet.JobCompleted)
	done.QueuedAt, done.StartedAt, done.CompletedAt = before(3*time.Hour), before(2*time.Hour), before(time.Hour)
	done.RunnerName, done.Conclusion = "mf-s1te-macos-15-old", "success"
	canceled.CompletedAt, canceled.Conclusion = before(50*time.Hour), "cancelled"
	bare := fleet.Job{ID: 7, Owner: "zeta", Repo: "tool", Name: "lint", RunID: 4, RunAttempt: 1, State: fleet.JobWaiting, HeardAt: before(0)}
	return []fleet.Job{gate, queued, hopeless, undecided, running, elsewhere, unnamed, done, canceled, bare}
}

func sampleRunners() []fleet.Runner {
	return []fleet.Runner{
		{
			ID: "r-busy", Pool: "macos-15", Image: image("a"), Host: "h1", Reason: "most free slots", Wanted: fleet.WantArmed, Scope: fleet.Scope{Owner: "acme"},
			Took: fleet.StepTimes{
				fleet.StepImage: 40 * time.Millisecond, fleet.StepClone: 310 * time.Microsecond, fleet.StepBoot: 59*time.Second + 709690*time.Microsecond,
				fleet.StepListener: 1250 * time.Millisecond, fleet.StepJob: 3 * time.Second,
			},
			ArmedAt: before(270 * time.Second), Observed: fleet.ObservedBusy, HoldsSlot: true, HasConfig: true, Progress: "step 3", Runner: "2.330.0",
			Registration: fleet.RegBusy, RunnerName: "mf-s1te-macos-15-busy", GitHubID: 901, Attempt: 1, Job: 12,
			Since: before(4 * time.Minute), MovedAt: before(time.Minute), CreatedAt: before(5 * time.Minute), Version: 9,
		},
		{
			ID: "r-boot", Pool: "macos-15", Host: "h1", Wanted: fleet.WantUp, Observed: fleet.ObservedBooting, HoldsSlot: true,
			Since: before(12 * time.Second), MovedAt: before(12 * time.Second), CreatedAt: before(20 * time.Second),
		},
		{
			ID: "r-fail", Pool: "linux", Host: "h2", Wanted: fleet.WantGone, Observed: fleet.ObservedFailed, Failure: "the VM never\tanswered\x1b[31m",
			Result: "failed", RetiredAt: before(30 * time.Second), Retired: "failed", Since: before(time.Minute), CreatedAt: before(time.Hour),
		},
		{ID: "r-new", Pool: "linux", Wanted: fleet.WantUp, Since: before(0), CreatedAt: before(0)},
		{
			ID: "r-old", Pool: "macos-15", Host: "h1", Wanted: fleet.WantGone, Observed: fleet.ObservedGone, Registration: fleet.RegGone,
			RunnerName: "mf-s1te-macos-15-old", Attempt: 1, Job: 9, JobDone: true, Since: before(time.Hour), CreatedAt: before(3 * time.Hour),
		},
	}
}

func sampleHosts() []fleet.Host {
	return []fleet.Host{
		{
			ID: "h1", Name: "mini-1", Slots: 2, Backends: []string{"vz"}, Images: []string{digest("a"), "sonoma"}, OS: "darwin", Arch: "arm64",
			AgentVersion: "v0.1.0", Degraded: "disk is 95% full", SeenAt: before(2 * time.Second), Failures: 1,
			FailedAt: before(time.Hour), CreatedAt: before(72 * time.Hour),
			Prefetch: []fleet.Prefetch{
				{Image: image("a"), Hold: true}, {Image: image("b"), BytesPerSecond: 50 << 20, Turn: before(5 * time.Minute)}, {Image: image("d"), Hold: true},
			},
			Cached: []fleet.CachedImage{
				{Image: image("a"), Digest: digest("a"), State: fleet.CacheWhole, DoneBytes: 40 << 30, TotalBytes: 40 << 30},
				{Image: image("b"), Digest: digest("b"), State: fleet.CacheFetching, DoneBytes: 10 << 30, TotalBytes: 40 << 30, FetchedBytes: 1 << 30, Failure: "503: asked again"},
			},
		},
		{ID: "h2", Name: "rack-2", Slots: 4, OS: "linux", Arch: "amd64", SeenAt: before(10 * time.Minute), CreatedAt: before(72 * time.Hour)},
		{ID: "h3", Name: "spare", CreatedAt: before(time.Minute)},
	}
}
