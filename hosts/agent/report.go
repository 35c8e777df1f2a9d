// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// sendReports sends the host's full state the moment it changes. Changes during a
// report that is under way make one more.
func (a *Agent) sendReports(ctx context.Context) error {
	pause := backoff{first: 100 * time.Millisecond, most: 10 * time.Second}
	trouble := outage{log: a.log, what: "report"}
	sequence := int64(0)
	idle := time.NewTimer(around(a.cfg.ReportEvery))
	defer idle.Stop()
	for {
		sequence++
		report := a.observe(sequence)
		crashpoint.Reached(crashpoint.ReportReady)
		err := a.client.report(ctx, a.credential, report)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case final(err):
			return explainFinal(err)
		case err != nil:
			trouble.failed(err)
			wait := pause.next()
			if code := codeOf(err); code == protocol.CodeCredential || code == protocol.CodeBadRequest {
				wait = around(refusedPause)
			}
			if !sleep(ctx, wait) {
				return context.Cause(ctx)
			}
			continue
		}
		crashpoint.Reached(crashpoint.ReportAnswered)
		pause.reset()
		trouble.worked()
		a.clock.exchanged()
		a.acknowledge(report)
		if err := a.forgetDelisted(); err != nil {
			a.log.Warn("runners of the past are kept for now", slog.Any("error", err))
		}
		idle.Reset(around(a.cfg.ReportEvery))
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-a.wake:
		case <-idle.C:
		}
	}
}

// observe returns the full state as it is now.
func (a *Agent) observe(sequence int64) protocol.Report {
	// The token is taken before the look: what changes after it is in the next report.
	select {
	case <-a.wake:
	default:
	}
	report := protocol.Report{Instance: a.instance, Sequence: sequence, Facts: a.facts(), Runners: []protocol.RunnerReport{}, Images: a.prefetch.images()}
	a.mu.Lock()
	defer a.mu.Unlock()
	report.Revision = max(a.revision, a.obeyed.Revision)
	for _, r := range a.runners {
		if r.view.Observed != string(fleet.ObservedNone) {
			report.Runners = append(report.Runners, wire(r.view))
		}
	}
	slices.SortFunc(report.Runners, func(x, y protocol.RunnerReport) int { return cmp.Compare(x.ID, y.ID) })
	return report
}

// wire makes sure that one runner, whose books may be damaged, spoils no report.
func wire(v protocol.RunnerReport) protocol.RunnerReport {
	if !fleet.ValidName(v.Pool) {
		v.Pool = "unknown"
	}
	if _, err := fleet.ParseScope(v.Scope); err != nil {
		v.Scope = ""
	}
	if job, err := fleet.ParseScope(v.JobRepository); err != nil || job.Repo == "" {
		v.JobRepository = ""
	}
	v.JobRun, v.JobRefused = max(v.JobRun, 0), cut(v.JobRefused, protocol.MaxText)
	v.Failure, v.Progress = cut(v.Failure, protocol.MaxText), cut(v.Progress, protocol.MaxText)
	v.Took = bounded(v.Took)
	return v
}

// acknowledge notes that the controller has heard which runners are gone.
func (a *Agent) acknowledge(report protocol.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, sent := range report.Runners {
		if r := a.runners[sent.ID]; r != nil && r.over && sent.Observed == string(fleet.ObservedGone) {
			r.goneAcked = true
		}
	}
}
