// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// Job returns a job.
func (s *Sim) Job(id int64) (Job, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.job(id); j != nil {
		return j.snapshot(), true
	}
	return Job{}, false
}

// Jobs returns all jobs of all attempts, in the order of their creation.
func (s *Sim) Jobs() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Job, 0, len(s.jobs))
	for _, j := range s.jobs {
		out = append(out, j.snapshot())
	}
	return out
}

// Runs returns all runs, in the order of their creation.
func (s *Sim) Runs() []Run {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Run, 0, len(s.runs))
	for _, r := range s.runs {
		out = append(out, r.snapshot())
	}
	return out
}

// WaitJob blocks until the job satisfies ok, and returns it as it then was.
func (s *Sim) WaitJob(ctx context.Context, id int64, ok func(Job) bool) (Job, error) {
	var last Job
	found := false
	err := s.await(ctx, fmt.Sprintf("job %d", id), func() {
		if j := s.job(id); j != nil {
			last, found = j.snapshot(), true
		}
	}, func() bool { return !found || ok(last) })
	if err == nil && !found {
		err = fmt.Errorf("wait for job %d: %w", id, ErrNotFound)
	}
	return last, err
}

// WaitRunner blocks until a registration of that name, removed ones included, satisfies ok.
func (s *Sim) WaitRunner(ctx context.Context, name string, ok func(Runner) bool) (Runner, error) {
	var last Runner
	found := false
	err := s.await(ctx, "runner "+name, func() {
		for _, r := range slices.Backward(s.runners) {
			if r.name == name {
				last, found = r.snapshot(time.Now(), s.timing.OfflineAfter), true
				return
			}
		}
	}, func() bool { return found && ok(last) })
	return last, err
}

// Wait blocks until anything has changed after the change since, and returns
// the number of the latest change. The number 0 is before the first.
func (s *Sim) Wait(ctx context.Context, since uint64) (uint64, error) {
	var at uint64
	err := s.await(ctx, "a change", func() { at = s.changes }, func() bool { return at > since })
	return at, err
}

// Runners returns all registrations, removed ones included, in the order of their creation.
func (s *Sim) Runners() []Runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := make([]Runner, 0, len(s.runners))
	for _, r := range s.runners {
		out = append(out, r.snapshot(now, s.timing.OfflineAfter))
	}
	return out
}

// Requests returns the latest REST calls, oldest first, at most 10,000.
func (s *Sim) Requests() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}
