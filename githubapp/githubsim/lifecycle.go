// SPDX-License-Identifier: MIT

package githubsim

import (
	"fmt"
	"time"
)

// assign offers each queued job, oldest first, to a random runner among those
// that are online, idle and fit. The caller holds mu.
func (s *Sim) assign() {
	s.assignSets()
	now := time.Now()
	var idle []*runner
	for _, r := range s.runners {
		if r.job == nil && r.alive(now, s.timing.OfflineAfter) {
			idle = append(idle, r)
		}
	}
	if len(idle) == 0 {
		return
	}
	for _, j := range s.jobs {
		if j.status != "queued" {
			continue
		}
		var fit []*runner
		for _, r := range idle {
			if r.job == nil && r.set == j.set && r.serves(j, s.group(r.scope.owner, r.groupID)) {
				fit = append(fit, r)
			}
		}
		if len(fit) > 0 {
			s.offer(j, fit[s.rng.intn(len(fit))])
		}
	}
}

// offer hands a job to a runner. The runner has AssignTimeout to take it.
func (s *Sim) offer(j *job, r *runner) {
	delete(s.jobTokens, j.token) // an earlier runner has no say any more
	j.token = newToken("job_")
	s.jobTokens[j.token] = j
	j.status, j.runner, r.job = statusAssigned, r, j
	j.offers++
	j.onlineAt = r.onlineAt
	r.busyAt = time.Now().Add(s.rng.upTo(s.timing.BusyLag))
	if r.session.broker {
		s.send(r, "RunnerJobRequest", nil)
	} else {
		s.send(r, "PipelineAgentJobRequest", nil)
	}
	offer := j.offers
	s.later(s.timing.AssignTimeout, func() {
		if j.status == statusAssigned && j.offers == offer {
			s.log.Info("job not taken in time, queued again", "job", j.id, "runner", r.name)
			s.withdraw(j)
			s.assign()
			s.change()
		}
	})
	s.change()
}

// withdraw takes an offered job back into the queue.
func (s *Sim) withdraw(j *job) {
	r := j.runner
	if j.status != statusAssigned || r == nil {
		return
	}
	j.status, j.runner, r.job = "queued", nil, nil
	if r.session != nil {
		r.session.drop(func(m *message) bool { return m.kind != "JobCancellation" })
	}
}

// start marks a job as taken by the runner that it was offered to.
func (s *Sim) start(j *job) {
	if j.status != statusAssigned {
		return
	}
	now := time.Now()
	r := j.runner
	j.status, j.startedAt, j.renewedAt = "in_progress", now, now
	j.runnerID, j.runnerName, j.groupID, j.groupName = r.id, r.name, r.groupID, r.groupName
	s.emitJob("in_progress", j)
	s.setStarted(j)
	s.settleRun(j.run)
	s.watchLease(j)
	s.change()
}

// watchLease fails a job whose runner has stopped renewing it.
func (s *Sim) watchLease(j *job) {
	s.later(time.Until(j.renewedAt.Add(s.timing.Lease)), func() {
		if j.done() {
			return
		}
		if time.Since(j.renewedAt) < s.timing.Lease {
			s.watchLease(j)
			return
		}
		s.finish(j, "failure", "The self-hosted runner lost communication with the server.")
	})
}

// renew extends the lease of a running job.
func (s *Sim) renew(j *job) {
	j.renewals++
	j.renewedAt = time.Now()
}

// finish completes a job. Its runner, being ephemeral, is unregistered.
func (s *Sim) finish(j *job, conclusion, reason string) {
	if j.done() {
		return
	}
	now := time.Now()
	if j.status == "in_progress" {
		j.closeSteps(conclusion, now)
	}
	j.status, j.conclusion, j.reason, j.completedAt = "completed", conclusion, reason, now
	if r := j.runner; r != nil {
		s.remove(r, "its job completed")
		if reason != "" { // the runner did not end it: its poll tells it
			r.signal()
		}
		j.runner = nil
	}
	s.emitJob("completed", j)
	s.setFinished(j)
	s.assignSets()
	s.settleRun(j.run)
	s.change()
}

// closeSteps gives every step an end, and adds those that the runner did not reach.
func (j *job) closeSteps(conclusion string, now time.Time) {
	reached, last := map[string]int{}, 0
	for _, st := range j.steps {
		reached[st.Name]++
		last = max(last, st.Number)
		if st.StartedAt.IsZero() {
			st.StartedAt = now
		}
		if st.CompletedAt.IsZero() {
			st.CompletedAt = now
		}
		if st.Status != "completed" || st.Conclusion == "" {
			st.Status, st.Conclusion = "completed", conclusion
		}
	}
	for i, spec := range j.spec.Steps {
		if reached[spec.Name]--; reached[spec.Name] >= 0 {
			continue
		}
		last++
		j.steps[fmt.Sprintf("unreached %d", i)] = &JobStep{
			Number: last, Name: spec.Name, Status: "completed", Conclusion: "skipped", StartedAt: now, CompletedAt: now,
		}
	}
}

// settleRun derives a run's state from its jobs and announces what has changed.
func (s *Sim) settleRun(r *run) {
	status, conclusion := "completed", "skipped"
	rank := map[string]int{"skipped": 0, "success": 1, "cancelled": 2, "failure": 3}
	var open, started, waiting int
	for _, j := range r.latest() {
		switch j.status {
		case "completed":
			if rank[j.conclusion] > rank[conclusion] {
				conclusion = j.conclusion
			}
		case "in_progress":
			open++
		case "waiting":
			open++
			waiting++
		default:
			open++
		}
		if j.attempt == len(r.attempts) && !j.startedAt.IsZero() {
			started++
		}
	}
	if open > 0 {
		conclusion = ""
		switch {
		case started > 0:
			status = "in_progress"
		case waiting == open:
			status = "waiting"
		default:
			status = "queued"
		}
	}
	if status == r.status {
		return
	}
	s.move(r, status, conclusion, time.Now())
	switch status {
	case "in_progress", "completed":
		s.emitRun(status, r)
	}
}

// remove ends a registration: its tokens and polls end with it.
func (s *Sim) remove(r *runner, why string) {
	if r.removed() {
		return
	}
	s.log.Info("runner removed", "runner", r.name, "reason", why)
	r.removedAt, r.removedWhy, r.session, r.job = time.Now(), why, nil, nil
	s.keys.giveBack(r.key)
	s.change()
}

// group finds a runner group of an organization.
func (s *Sim) group(acc *account, id int64) *runnerGroup {
	for _, g := range acc.groups {
		if g.id == id {
			return g
		}
	}
	return nil
}
