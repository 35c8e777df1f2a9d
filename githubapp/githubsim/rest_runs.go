// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (s *Sim) runRoutes() []route {
	runs := "/repos/{owner}/{repo}/actions/runs"
	jobs := "/repos/{owner}/{repo}/actions/jobs"
	return []route{
		{"GET " + runs, installationOnly, false, under(s.listRuns)},
		{"GET " + runs + "/{run}", installationOnly, false, under(s.getRun)},
		{"GET " + runs + "/{run}/attempts/{attempt}", installationOnly, false, under(s.getAttempt)},
		{"DELETE " + runs + "/{run}", installationOnly, false, under(s.deleteRun)},
		{"GET " + runs + "/{run}/jobs", installationOnly, false, under(s.listJobs)},
		{"GET " + runs + "/{run}/attempts/{attempt}/jobs", installationOnly, false, under(s.listAttemptJobs)},
		{"POST " + runs + "/{run}/cancel", installationOnly, false, under(s.postCancel)},
		{"POST " + runs + "/{run}/rerun", installationOnly, false, under(s.postRerun(func(*job) bool { return true }))},
		{"POST " + runs + "/{run}/rerun-failed-jobs", installationOnly, false, under(s.postRerun(unsuccessful))},
		{"GET " + jobs + "/{job}", installationOnly, false, under(s.getJob)},
		{"GET " + jobs + "/{job}/logs", installationOnly, false, under(s.getJobLogs)},
		{"POST " + jobs + "/{job}/rerun", installationOnly, false, under(s.postRerunJob)},
	}
}

func unsuccessful(j *job) bool { return j.conclusion == "failure" || j.conclusion == "cancelled" }

// runOf finds the run of a call's path.
func (s *Sim) runOf(c *call, level string) (*run, *answer) {
	repo, bad := s.repo(c, "actions", level)
	if bad != nil {
		return nil, bad
	}
	r := s.run(c.idPath("run"))
	if r == nil || r.repo != repo {
		return nil, notFound()
	}
	return r, nil
}

// jobOf finds the job of a call's path.
func (s *Sim) jobOf(c *call, level string) (*job, *answer) {
	repo, bad := s.repo(c, "actions", level)
	if bad != nil {
		return nil, bad
	}
	j := s.job(c.idPath("job"))
	if j == nil || j.run.repo != repo || j.run.deleted {
		return nil, notFound()
	}
	return j, nil
}

func (s *Sim) listRuns(c *call) *answer {
	repo, bad := s.repo(c, "actions", "read")
	if bad != nil {
		return bad
	}
	match, bad := runFilter(c)
	if bad != nil {
		return bad
	}
	var all []*run
	for _, r := range slices.Backward(s.runs) {
		if r.repo == repo && !r.deleted && match(r) {
			all = append(all, r)
		}
	}
	items, header := page(c, all)
	list := []object{}
	for _, r := range items {
		list = append(list, r.view(c.base))
	}
	return &answer{status: http.StatusOK, header: header, body: object{"total_count": len(all), "workflow_runs": list}}
}

// runFilter reads the filters of a list of runs.
func runFilter(c *call) (func(*run) bool, *answer) {
	q := c.URL.Query()
	created, bad := createdFilter(q.Get("created"))
	if bad != nil {
		return nil, bad
	}
	is := func(name string, have func(*run) string) func(*run) bool {
		want := q.Get(name)
		return func(r *run) bool { return want == "" || have(r) == want }
	}
	filters := []func(*run) bool{
		is("event", func(r *run) string { return r.workflow.Event }),
		is("branch", func(r *run) string { return r.workflow.Branch }),
		is("head_sha", func(r *run) string { return r.sha }),
		func(r *run) bool {
			actor := q.Get("actor")
			return actor == "" || strings.EqualFold(actor, r.actor.login)
		},
		func(r *run) bool {
			want := q.Get("status") // GitHub takes a conclusion here too
			status, conclusion, ok := r.listed(c.now)
			return ok && (want == "" || status == want || conclusion == want)
		},
		func(r *run) bool { return created(r.repo.clock.of(r.createdAt)) },
	}
	return func(r *run) bool {
		return !slices.ContainsFunc(filters, func(f func(*run) bool) bool { return !f(r) })
	}, nil
}

// createdFilter reads GitHub's date search: >=T, <=T, >T, <T, T1..T2, or a day.
func createdFilter(text string) (func(time.Time) bool, *answer) {
	if text == "" {
		return func(time.Time) bool { return true }, nil
	}
	if from, to, ok := strings.Cut(text, ".."); ok {
		low, bad := createdFilter(">=" + from)
		if from == "*" {
			low, bad = createdFilter("")
		}
		if bad != nil {
			return nil, bad
		}
		high, bad := createdFilter("<=" + to)
		if to == "*" {
			high, bad = createdFilter("")
		}
		if bad != nil {
			return nil, bad
		}
		return func(t time.Time) bool { return low(t) && high(t) }, nil
	}
	rest := strings.TrimLeft(text, "<>=")
	op := text[:len(text)-len(rest)]
	layout := time.RFC3339
	if len(rest) == len(time.DateOnly) {
		layout = time.DateOnly
	}
	at, err := time.Parse(layout, rest)
	if err != nil {
		return nil, unprocessable("Invalid value for created: " + text)
	}
	return func(t time.Time) bool {
		t = t.Truncate(time.Second)
		switch op {
		case ">=":
			return !t.Before(at)
		case ">":
			return t.After(at)
		case "<=":
			return !t.After(at)
		case "<":
			return t.Before(at)
		default:
			return !t.Before(at) && t.Before(at.Add(24*time.Hour))
		}
	}, nil
}

func (s *Sim) getRun(c *call) *answer {
	r, bad := s.runOf(c, "read")
	if bad != nil {
		return bad
	}
	return ok(r.view(c.base))
}

// getAttempt shows a run as it was in one of its attempts.
func (s *Sim) getAttempt(c *call) *answer {
	r, bad := s.runOf(c, "read")
	if bad != nil {
		return bad
	}
	n, err := strconv.Atoi(c.PathValue("attempt"))
	if err != nil || n < 1 || n > len(r.attempts) {
		return notFound()
	}
	v := r.view(c.base)
	v["run_attempt"], v["triggering_actor"] = n, r.startedBy[n-1].view(c.base)
	if n < len(r.attempts) {
		v["status"] = "completed"
	}
	return ok(v)
}

func (s *Sim) deleteRun(c *call) *answer {
	r, bad := s.runOf(c, "write")
	if bad != nil {
		return bad
	}
	if r.status != "completed" {
		return fail(http.StatusForbidden, "Cannot delete a workflow run that is not completed.")
	}
	r.deleted = true
	s.change()
	return &answer{status: http.StatusNoContent}
}

func (s *Sim) listJobs(c *call) *answer {
	r, bad := s.runOf(c, "read")
	if bad != nil {
		return bad
	}
	if c.URL.Query().Get("filter") != "all" {
		return jobList(c, r.latest())
	}
	var all []*job
	for _, attempt := range r.attempts {
		for _, j := range attempt {
			if !slices.Contains(all, j) {
				all = append(all, j)
			}
		}
	}
	return jobList(c, all)
}

func (s *Sim) listAttemptJobs(c *call) *answer {
	r, bad := s.runOf(c, "read")
	if bad != nil {
		return bad
	}
	n, err := strconv.Atoi(c.PathValue("attempt"))
	if err != nil || n < 1 || n > len(r.attempts) {
		return notFound()
	}
	return jobList(c, r.attempts[n-1])
}

func jobList(c *call, all []*job) *answer {
	items, header := page(c, all)
	list := []object{}
	for _, j := range items {
		list = append(list, j.view(c.base))
	}
	return &answer{status: http.StatusOK, header: header, body: object{"total_count": len(all), "jobs": list}}
}

func (s *Sim) getJob(c *call) *answer {
	j, bad := s.jobOf(c, "read")
	if bad != nil {
		return bad
	}
	return ok(j.view(c.base))
}

// getJobLogs redirects to the log, as GitHub does to its storage.
func (s *Sim) getJobLogs(c *call) *answer {
	j, bad := s.jobOf(c, "read")
	if bad != nil {
		return bad
	}
	at := c.base + controlPrefix + "jobs/" + strconv.FormatInt(j.id, 10) + "/logs"
	return &answer{status: http.StatusFound, header: http.Header{"Location": {at}}}
}

func (s *Sim) postCancel(c *call) *answer {
	r, bad := s.runOf(c, "write")
	if bad != nil {
		return bad
	}
	if r.status == "completed" {
		return fail(http.StatusConflict, "Cannot cancel a workflow run that is completed.")
	}
	s.cancelRun(r)
	return &answer{status: http.StatusAccepted, body: object{}}
}

func (s *Sim) postRerun(again func(*job) bool) endpoint {
	return func(c *call) *answer {
		r, bad := s.runOf(c, "write")
		if bad != nil {
			return bad
		}
		if err := s.rerun(r, r.actor, again); err != nil {
			return fail(http.StatusForbidden, "This workflow run cannot be retried")
		}
		return &answer{status: http.StatusCreated, body: object{}}
	}
}

func (s *Sim) postRerunJob(c *call) *answer {
	j, bad := s.jobOf(c, "write")
	if bad != nil {
		return bad
	}
	if err := s.rerun(j.run, j.run.actor, func(x *job) bool { return x == j }); err != nil {
		return fail(http.StatusForbidden, "This job cannot be retried")
	}
	return &answer{status: http.StatusCreated, body: object{}}
}
