// SPDX-License-Identifier: MIT

package hosts

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// wire puts what is wanted into the words of the protocol, with all that the host
// needs to make each runner.
func (s *Server) wire(d fleet.Desired) protocol.Desired {
	out := protocol.Desired{Site: d.Site, Epoch: d.Epoch, Revision: d.Revision, Runners: []protocol.Desire{}, Images: prefetches(d.Images)}
	for _, r := range d.Runners {
		p := s.pools[r.Pool]
		want := protocol.Desire{
			ID: string(r.ID), Pool: r.Pool, Image: cmp.Or(r.Image, p.Image), Backend: p.Backend, CPUs: p.CPUs, MemoryMiB: p.MemoryMiB,
			Guest: p.Guest, Network: p.Network, Runner: protocol.RunnerArchive(p.Runner),
			EndGraceSeconds: int(s.c.EndGrace / time.Second),
		}
		switch r.Wanted {
		case fleet.WantArmed:
			want.Wanted, want.Scope = protocol.WantArmed, r.Scope.String()
		case fleet.WantDrain:
			want.Wanted, want.UnlessBusy = protocol.WantGone, true
		case fleet.WantGone:
			want.Wanted = protocol.WantGone
		default:
			want.Wanted = protocol.WantUp
		}
		out.Runners = append(out.Runners, want)
	}
	return out
}

func factsOf(f protocol.Facts) (fleet.HostFacts, error) {
	if f.Slots < 0 || f.Slots > 1000 {
		return fleet.HostFacts{}, fmt.Errorf("facts.slots %d: want 0 to 1000", f.Slots)
	}
	if len(f.Backends) > 100 || len(f.Images) > 1000 {
		return fleet.HostFacts{}, fmt.Errorf("facts: %d backends and %d images are too many", len(f.Backends), len(f.Images))
	}
	for _, word := range slices.Concat(f.Backends, f.Images, []string{f.OS, f.Arch, f.AgentVersion}) {
		if len(word) > 200 {
			return fleet.HostFacts{}, fmt.Errorf("facts: %.40q... is longer than 200 bytes", word)
		}
	}
	if len(f.Degraded) > protocol.MaxText {
		return fleet.HostFacts{}, fmt.Errorf("facts.degraded is longer than %d bytes", protocol.MaxText)
	}
	return fleet.HostFacts{
		Slots: f.Slots, Backends: printables(f.Backends), Images: printables(f.Images),
		OS: printable(f.OS), Arch: printable(f.Arch), AgentVersion: printable(f.AgentVersion), Degraded: printable(f.Degraded),
	}, nil
}

// printable makes a text that comes from a host, and perhaps from inside a VM, fit
// for logs and terminals.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
}

func printables(list []string) []string {
	out := make([]string, 0, len(list))
	for _, s := range list {
		out = append(out, printable(s))
	}
	return out
}

// maxCount bounds what an agent may count to: the controller goes on from a revision
// that an agent names, and must never come to the end of the numbers.
const maxCount = 1 << 53

func reportOf(in protocol.Report) (fleet.HostReport, error) {
	out := fleet.HostReport{Instance: in.Instance, Sequence: in.Sequence, Revision: in.Revision}
	if in.Revision < 0 || in.Revision > maxCount || in.Sequence < 0 || in.Sequence > maxCount {
		return out, fmt.Errorf("revision %d, sequence %d: want 0 to %d", in.Revision, in.Sequence, int64(maxCount))
	}
	if err := checkInstance(in.Instance); err != nil {
		return out, err
	}
	var err error
	if out.Facts, err = factsOf(in.Facts); err != nil {
		return out, err
	}
	if len(in.Runners) > protocol.MaxRunners {
		return out, fmt.Errorf("runners: %d are more than %d", len(in.Runners), protocol.MaxRunners)
	}
	if out.Images, err = cachedOf(in.Images); err != nil {
		return out, err
	}
	seen := map[string]bool{}
	for _, r := range in.Runners {
		if !idPattern.MatchString(r.ID) || seen[r.ID] {
			return out, fmt.Errorf("runners: id %.70q is malformed or stands twice", r.ID)
		}
		seen[r.ID] = true
		if len(r.Failure) > protocol.MaxText || len(r.Result) > 100 || len(r.Progress) > protocol.MaxText || len(r.JobRefused) > protocol.MaxText {
			return out, fmt.Errorf("runner %s: a text is longer than %d bytes", r.ID, protocol.MaxText)
		}
		observed := fleet.Observed(r.Observed)
		if observed == fleet.ObservedNone || !slices.Contains(fleet.Observeds(), observed) {
			return out, fmt.Errorf("runner %s: observed %.40q is not a word of the protocol", r.ID, r.Observed)
		}
		said := fleet.RunnerReport{
			ID: fleet.RunnerID(r.ID), Observed: observed, HoldsSlot: r.HoldsSlot, HasConfig: r.HasConfig,
			Failure: printable(r.Failure), Result: printable(r.Result), Progress: printable(r.Progress), Pool: r.Pool, RunnerName: r.RunnerName,
			JobRepository: r.JobRepository, JobRun: r.JobRun, JobRefused: printable(r.JobRefused),
			Runner: r.RunnerVersion, Refused: r.RunnerRefused,
		}
		if said.Took, err = tookOf(r.Took); err != nil {
			return out, fmt.Errorf("runner %s: %w", r.ID, err)
		}
		if r.RunnerVersion != "" && !versionPattern.MatchString(r.RunnerVersion) {
			return out, fmt.Errorf("runner %s: runner_version %.70q is not a version", r.ID, r.RunnerVersion)
		}
		if r.RunnerName != "" && !idPattern.MatchString(r.RunnerName) {
			return out, fmt.Errorf("runner %s: runner_name %.70q is not a name", r.ID, r.RunnerName)
		}
		if job, err := fleet.ParseScope(r.JobRepository); r.JobRepository != "" && (err != nil || job.Repo == "") || r.JobRun < 0 {
			return out, fmt.Errorf("runner %s: job_repository %.70q or job_run %d names none", r.ID, r.JobRepository, r.JobRun)
		}
		if !fleet.ValidName(r.Pool) {
			return out, fmt.Errorf("runner %s: pool %.40q is not a name", r.ID, r.Pool)
		}
		if r.Scope != "" {
			if said.Scope, err = fleet.ParseScope(r.Scope); err != nil {
				return out, fmt.Errorf("runner %s: %w", r.ID, err)
			}
		}
		out.Runners = append(out.Runners, said)
	}
	return out, nil
}

// tookOf reads how long the steps of a runner took.
func tookOf(in protocol.StepTimes) (out fleet.StepTimes, err error) {
	for step, us := range [...]int64{
		fleet.StepRunner: in.Runner, fleet.StepImage: in.Image, fleet.StepClone: in.Clone, fleet.StepRestore: in.Restore,
		fleet.StepBoot: in.Boot, fleet.StepSession: in.Session, fleet.StepInstall: in.Install, fleet.StepListener: in.Listener,
		fleet.StepJob: in.Job, fleet.StepStop: in.Stop, fleet.StepDelete: in.Delete,
	} {
		if us < 0 || us > protocol.MaxStep.Microseconds() {
			return out, fmt.Errorf("took.%s %d: want 0 to %d microseconds", fleet.Step(step), us, protocol.MaxStep.Microseconds())
		}
		out[step] = time.Duration(us) * time.Microsecond
	}
	return out, nil
}
