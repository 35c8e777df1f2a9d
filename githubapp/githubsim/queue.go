// SPDX-License-Identifier: MIT

package githubsim

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// ErrNotFound says that there is no such run, job or delivery.
var ErrNotFound = errors.New("not found")

// QueueRun starts a workflow run: its jobs are queued, or wait if gated.
func (s *Sim) QueueRun(w Workflow) (Run, error) {
	if err := w.Validate(); err != nil {
		return Run{}, fmt.Errorf("queue run: %w", err)
	}
	w = w.withDefaults()
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.repos[strings.ToLower(w.Repo)]
	if repo == nil {
		return Run{}, fmt.Errorf("queue run: no repository %s: add an installation that has it", w.Repo)
	}
	head := repo
	if !strings.EqualFold(w.HeadRepo, w.Repo) {
		owner, name, _ := splitRepo(w.HeadRepo)
		head = s.repository(s.account(owner, false), name, false)
		head.fork = true
	}
	now := time.Now()
	r := &run{
		id: runIDs + s.newID(), repo: repo, headRepo: head, actor: s.account(w.Actor, false), workflow: w, sha: s.rng.hex(40),
		createdAt: now, startedAt: now, workflowID: s.workflowID(repo, w.Name),
	}
	s.move(r, "queued", "", now)
	r.number = 1 + len(slices.DeleteFunc(slices.Clone(s.runs), func(x *run) bool { return x.repo != repo || x.workflowID != r.workflowID }))
	s.runs = append(s.runs, r)
	r.attempts, r.startedBy = [][]*job{nil}, []*account{r.actor}
	for _, spec := range w.Jobs {
		r.attempts[0] = append(r.attempts[0], s.newJob(r, spec))
	}
	s.emitRun("requested", r)
	for _, j := range r.latest() {
		s.enqueue(j)
	}
	s.settleRun(r)
	s.assign()
	s.change()
	return r.snapshot(), nil
}

// workflowID is the same for every run of one workflow in one repository.
func (s *Sim) workflowID(repo *repository, name string) int64 {
	for _, r := range s.runs {
		if r.repo == repo && r.workflow.Name == name {
			return r.workflowID
		}
	}
	return 30_000_000 + s.newID()
}

func (s *Sim) newJob(r *run, spec JobSpec) *job {
	j := &job{
		id: jobIDs + s.newID(), run: r, attempt: len(r.attempts), spec: spec, createdAt: time.Now(), requestID: s.newID(),
		guid: newGUID(), plan: newGUID(), timeline: newGUID(), scopeID: newGUID(), blobKey: newToken(""),
		offered: map[int64]bool{}, steps: map[string]*JobStep{}, logs: map[string]*strings.Builder{},
	}
	s.jobs = append(s.jobs, j)
	return j
}

// enqueue starts the life of a new job.
func (s *Sim) enqueue(j *job) {
	switch {
	case j.spec.Skipped:
		s.finish(j, "skipped", "")
	case j.spec.Gated:
		j.status = "waiting"
		if !s.opt.Kind { // GitHub may announce a gated job as queued, with the status waiting
			s.emitJob("queued", j)
		}
		s.emitJob("waiting", j)
	default:
		j.status, j.queuedAt = "queued", time.Now()
		s.emitJob("queued", j)
	}
}

// Approve opens the gate of a waiting job.
func (s *Sim) Approve(jobID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(jobID)
	if j == nil {
		return fmt.Errorf("approve job %d: %w", jobID, ErrNotFound)
	}
	if j.status != "waiting" {
		return fmt.Errorf("approve job %d: it is %s, not waiting", jobID, j.publicStatus())
	}
	j.status, j.queuedAt = "queued", time.Now()
	s.emitJob("queued", j)
	s.settleRun(j.run)
	s.assign()
	s.change()
	return nil
}

// CancelJob asks for the end of one job, which GitHub itself offers for whole runs only.
func (s *Sim) CancelJob(jobID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(jobID)
	if j == nil {
		return fmt.Errorf("cancel job %d: %w", jobID, ErrNotFound)
	}
	s.cancel(j)
	s.settleRun(j.run)
	s.change()
	return nil
}

// CancelRun asks for the end of all jobs of a run.
func (s *Sim) CancelRun(runID int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.run(runID)
	if r == nil {
		return fmt.Errorf("cancel run %d: %w", runID, ErrNotFound)
	}
	s.cancelRun(r)
	return nil
}

func (s *Sim) cancelRun(r *run) {
	for _, j := range r.latest() {
		s.cancel(j)
	}
	s.settleRun(r)
	s.change()
}

// cancel ends a job that no runner has taken at once. A runner is asked, and
// given its time.
func (s *Sim) cancel(j *job) {
	switch j.status {
	case "completed":
	case "in_progress":
		if j.cancelled {
			return
		}
		j.cancelled = true
		if j.runner != nil && j.runner.session != nil {
			s.send(j.runner, "JobCancellation", marshal(object{"jobId": j.guid, "timeout": "00:05:00"}))
		}
		s.later(s.timing.CancelGrace, func() {
			if !j.done() {
				s.finish(j, "cancelled", "the runner did not end the job in time after its cancellation")
			}
		})
	default:
		s.withdraw(j)
		s.finish(j, "cancelled", "")
		s.assign() // the runner that it was offered to is free
	}
}

// Rerun starts a new attempt of a run: of one job, or with jobID 0 of all that
// did not succeed.
func (s *Sim) Rerun(runID, jobID int64) (Run, error) { return s.RerunAs(runID, jobID, "") }

// RerunAs is Rerun by somebody else than who began the run.
func (s *Sim) RerunAs(runID, jobID int64, actor string) (Run, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.run(runID)
	if r == nil {
		return Run{}, fmt.Errorf("rerun run %d: %w", runID, ErrNotFound)
	}
	again := func(j *job) bool {
		return j.id == jobID || jobID == 0 && (j.conclusion == "failure" || j.conclusion == "cancelled")
	}
	by := r.actor
	if actor != "" {
		by = s.account(actor, false)
	}
	if err := s.rerun(r, by, again); err != nil {
		return Run{}, err
	}
	return r.snapshot(), nil
}

// rerun makes a new attempt with new jobs for those that run again. The others
// are carried over, and GitHub announces their completion once more.
func (s *Sim) rerun(r *run, by *account, again func(*job) bool) error {
	if r.status != "completed" {
		return fmt.Errorf("rerun run %d: it is %s; only a completed run can run again", r.id, r.status)
	}
	previous := r.latest()
	if !slices.ContainsFunc(previous, again) {
		return fmt.Errorf("rerun run %d: none of its jobs is to run again", r.id)
	}
	r.attempts, r.startedBy = append(r.attempts, nil), append(r.startedBy, by)
	next, fresh := make([]*job, len(previous)), []*job{}
	for i, j := range previous {
		next[i] = j
		if again(j) {
			next[i] = s.newJob(r, j.spec)
			fresh = append(fresh, next[i])
		}
	}
	r.attempts[len(r.attempts)-1] = next
	now := time.Now()
	s.move(r, "queued", "", now)
	r.startedAt = now
	s.emitRun("requested", r)
	for _, j := range fresh {
		s.enqueue(j)
	}
	for i, j := range previous {
		if next[i] == j {
			s.emitJob("completed", j)
		}
	}
	s.settleRun(r)
	s.assign()
	s.change()
	return nil
}

func (s *Sim) job(id int64) *job {
	i := slices.IndexFunc(s.jobs, func(j *job) bool { return j.id == id })
	if i < 0 {
		return nil
	}
	return s.jobs[i]
}

func (s *Sim) run(id int64) *run {
	i := slices.IndexFunc(s.runs, func(r *run) bool { return r.id == id && !r.deleted })
	if i < 0 {
		return nil
	}
	return s.runs[i]
}
