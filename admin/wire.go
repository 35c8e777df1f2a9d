// SPDX-License-Identifier: MIT

package admin

import (
	"slices"
	"time"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/fleet"
)

// wireTime is a time as the API shows it: UTC, and to the microsecond, which is
// as fine as anything is stored.
func wireTime(t time.Time) time.Time { return t.UTC().Truncate(time.Microsecond) }

func wireJob(j fleet.Job) api.Job {
	return api.Job{
		ID: int64(j.ID), RunID: j.RunID, RunAttempt: j.RunAttempt, Repository: j.Repository(),
		Workflow: j.Workflow, Name: j.Name, Labels: list(j.Labels), State: api.JobState(j.State),
		Conclusion: j.Conclusion, RunnerName: j.RunnerName, URL: j.URL,
		CreatedAt: wireTime(j.CreatedAt), HeardAt: wireTime(j.HeardAt), QueuedAt: wireTime(j.QueuedAt),
		StartedAt: wireTime(j.StartedAt), CompletedAt: wireTime(j.CompletedAt),
	}
}

func wireRunner(r fleet.Runner, hostNames map[fleet.HostID]string) api.Runner {
	return api.Runner{
		ID: string(r.ID), Pool: r.Pool, Host: string(r.Host), HostName: hostNames[r.Host], Image: r.Image, Reason: r.Reason,
		Phase: api.Phase(r.Phase()), Since: wireTime(r.Since), MovedAt: wireTime(r.MovedAt), Progress: r.Progress,
		Wanted: api.Wanted(r.Wanted), Observed: api.Observed(r.Observed), Registration: api.Registration(r.Registration),
		Scope: r.Scope.String(), RunnerName: r.RunnerName, GitHubID: r.GitHubID, Attempts: r.Attempt,
		Job: int64(r.Job), Version: r.Runner, Result: r.Result, JobRefused: r.JobRefused, Failure: r.Failure, Retired: r.Retired, HoldsSlot: r.HoldsSlot, Steps: wireSteps(r.Took),
		CreatedAt: wireTime(r.CreatedAt), ArmedAt: wireTime(r.ArmedAt), RetiredAt: wireTime(r.RetiredAt),
	}
}

// wireSteps lists the steps that are over.
func wireSteps(t fleet.StepTimes) []api.StepTime {
	var out []api.StepTime
	for _, step := range fleet.Steps() {
		if took := t[step]; took > 0 {
			out = append(out, api.StepTime{Step: api.Step(step.String()), Microseconds: took.Microseconds()})
		}
	}
	return out
}

func wireHost(h fleet.Host, taken int, state api.HostState) api.Host {
	return api.Host{
		ID: string(h.ID), Name: h.Name, State: state, Degraded: h.Degraded,
		Slots: h.Slots, FreeSlots: max(0, h.Slots-taken), // an agent may have lowered its slots under its VMs
		Backends: list(h.Backends), Images: list(h.Images), Cache: wireCache(h), OS: h.OS, Arch: h.Arch, AgentVersion: h.AgentVersion,
		SeenAt: wireTime(h.SeenAt), Failures: h.Failures, FailedAt: wireTime(h.FailedAt), CreatedAt: wireTime(h.CreatedAt),
	}
}

// wireCache joins what a host is to have with what it says of it.
func wireCache(h fleet.Host) []api.CachedImage {
	var out []api.CachedImage
	for _, c := range h.Cached {
		out = append(out, api.CachedImage{
			Image: c.Image, Digest: c.Digest, State: api.CacheState(c.State),
			DoneBytes: c.DoneBytes, TotalBytes: c.TotalBytes, FetchedBytes: c.FetchedBytes, Failure: c.Failure,
		})
	}
	for _, p := range h.Prefetch {
		digest := fleet.ImageDigest(p.Image)
		at := slices.IndexFunc(out, func(c api.CachedImage) bool { return c.Digest == digest })
		if at < 0 {
			at = len(out)
			out = append(out, api.CachedImage{Image: p.Image, Digest: digest})
			if h.Holds(p.Image) {
				out[at].State = api.CacheStateWhole
			}
		}
		out[at].Turn, out[at].BytesPerSecond = !p.Hold, p.BytesPerSecond
	}
	return out
}

// wireRollout shows a rollout with how far the hosts are that could serve the pool.
func wireRollout(p fleet.Pool, r fleet.Rollout, hosts []fleet.Host) api.Rollout {
	out := api.Rollout{
		Current: r.Current, Next: r.Next, Previous: r.Previous, Held: r.Held, Tagged: r.Tagged, Note: r.Note,
		CanaryPercent: p.Canary.Percent, Failures: r.Failures, FailedAt: wireTime(r.FailedAt), Failure: r.Failure,
		StartedAt: wireTime(r.StartedAt), TriedAt: wireTime(r.TriedAt), PromotedAt: wireTime(r.PromotedAt),
		Error: r.Error, ErrorAt: wireTime(r.ErrorAt),
	}
	if p.Canary.For > 0 {
		out.CanaryFor = p.Canary.For.String()
	}
	for i := range hosts {
		h := &hosts[i]
		if !p.FitsOn(h) {
			continue
		}
		out.Hosts++
		if r.Current != "" && h.Holds(r.Current) {
			out.HostsWithCurrent++
		}
		if r.Next != "" && h.Holds(r.Next) {
			out.HostsWithNext++
		}
	}
	return out
}

func wirePool(p fleet.Pool, counts map[fleet.Phase]int) api.Pool {
	labels := p.LabelNames
	if len(labels) == 0 {
		labels = p.Labels
	}
	out := api.Pool{
		Name: p.Name, Labels: list(labels), Scopes: []string{}, Image: p.Image, Backend: p.Backend,
		CPUs: p.CPUs, MemoryMiB: p.MemoryMiB, MaxRunners: p.MaxRunners, Standby: p.Standby,
		RunnerGroup: p.RunnerGroup, Runners: map[string]int{},
	}
	for _, s := range p.Scopes {
		out.Scopes = append(out.Scopes, s.String())
	}
	for phase, n := range counts {
		if n > 0 {
			out.Runners[string(phase)] = n
		}
	}
	return out
}

func wireDelivery(d fleet.DeliverySummary) api.Delivery {
	return api.Delivery{
		GUID: d.GUID, Event: d.Event, Action: d.Action, Repository: d.Repository, InstallationID: d.InstallationID,
		ReceivedAt: wireTime(d.ReceivedAt), Status: api.DeliveryStatus(d.Status), Reason: d.Reason, Times: d.Times,
	}
}

// list makes an absent list an empty one, which JSON shows as [] and not null.
func list[T ~[]string](words T) []string {
	if words == nil {
		return []string{}
	}
	return words
}
