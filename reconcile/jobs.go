// SPDX-License-Identifier: MIT

package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

const (
	// batch bounds what is stored in one transaction.
	batch = 200
	// With more jobs in doubt than this, a look at the whole repository costs less.
	askSingly = 8
	// After so many failures in one look GitHub itself is in trouble, not what was asked for.
	maxFailures = 3
	// A job behind a deployment gate can be there for weeks, and is no demand.
	askWaiting = time.Hour
)

// look compares the books with GitHub for one repository: everything that is queued or
// runs there is learnt, and what the books have beyond that is asked for by its id.
func (w *watcher) look(ctx context.Context, repo fleet.Scope, absent *suspects) (again time.Time, err error) {
	// Read before GitHub is asked: a job that is told of meanwhile lacks in no list.
	jobs, _, err := w.c.Store.Unsettled(ctx, w.owner, time.Now())
	if err != nil {
		return again, err
	}
	open := map[fleet.JobID]fleet.Job{}
	for _, j := range jobs {
		if sameRepo(j, repo) {
			open[j.ID] = j
		}
	}
	list, err := w.c.GitHub.ActiveJobs(ctx, repo)
	if err != nil {
		return again, fmt.Errorf("look at %s: %w", repo, err)
	}
	crashpoint.Reached(crashpoint.JobsListed)
	var news []fleet.JobNews
	for _, n := range list {
		if _, known := open[n.Job.ID]; known || n.Event != fleet.SeenCompleted {
			news = append(news, n)
			delete(open, n.Job.ID)
		}
	}
	for part := range slices.Chunk(news, batch) {
		if err := w.c.Learn(ctx, repo, part); err != nil {
			return again, err
		}
	}
	unlisted := make([]fleet.Job, 0, len(open))
	for _, j := range open {
		if j.State != fleet.JobWaiting || time.Since(j.AskedAt) > askWaiting {
			unlisted = append(unlisted, j)
		}
	}
	return w.askEach(ctx, repo, unlisted, absent)
}

// askEach asks for jobs by their ids, the one not asked for longest first. A job that
// GitHub says it does not have is closed when it has said so for long enough.
func (w *watcher) askEach(ctx context.Context, repo fleet.Scope, jobs []fleet.Job, absent *suspects) (again time.Time, err error) {
	slices.SortFunc(jobs, func(a, b fleet.Job) int { return cmp.Or(a.AskedAt.Compare(b.AskedAt), cmp.Compare(a.ID, b.ID)) })
	missing := map[string]fleet.JobNews{}
	var keys, unseen []string
	var failed failures
	for _, j := range jobs {
		key := fmt.Sprint(j.ID)
		if failed.hopeless(ctx) {
			unseen = append(unseen, key)
			continue
		}
		asked := time.Now()
		news, there, err := w.c.GitHub.Job(ctx, repo, j.ID)
		if err != nil {
			unseen = append(unseen, key)
			failed.add(fmt.Errorf("ask for job %d of %s: %w", j.ID, repo, err))
			continue
		}
		if !there {
			keys = append(keys, key)
			missing[key] = fleet.JobNews{Event: fleet.SeenCompleted, Asked: asked, Job: fleet.Job{ID: j.ID, Owner: j.Owner, Repo: j.Repo}}
			continue
		}
		if err := w.c.Learn(ctx, repo, []fleet.JobNews{news}); err != nil {
			return again, err
		}
	}
	sure, again := absent.see(time.Now(), w.c.Absence, keys, unseen)
	for _, key := range keys {
		if !sure[key] {
			continue
		}
		w.c.Log.Warn("job closed: GitHub has it no more", "job", missing[key].Job.ID, "repository", repo.String())
		if err := w.c.Learn(ctx, repo, []fleet.JobNews{missing[key]}); err != nil {
			return again, err
		}
	}
	return again, failed.joined()
}

// failures are of single jobs or registrations: one keeps nobody from the others.
type failures []error

func (f *failures) add(err error) {
	if err != nil {
		*f = append(*f, err)
	}
}

// hopeless reports whether it makes no sense to go on asking after them.
func (f failures) hopeless(ctx context.Context) bool {
	_, limited := errors.AsType[*fleet.RateLimited](f.joined())
	_, over := putOff(f.joined())
	return limited || over || ctx.Err() != nil || len(f) >= maxFailures
}

func (f failures) joined() error { return errors.Join(f...) }

// ask settles doubts: few by asking for each job, many by a look at the repository. A
// job that GitHub does not have is left to the looks.
func (w *watcher) ask(ctx context.Context, doubtful []fleet.Job) error {
	var failed failures
	byRepo := map[fleet.Scope][]fleet.Job{}
	var repos []fleet.Scope // in the order of their oldest doubts
	for _, j := range doubtful {
		repo := fleet.Scope{Owner: j.Owner, Repo: j.Repo}
		if byRepo[repo] == nil {
			repos = append(repos, repo)
		}
		byRepo[repo] = append(byRepo[repo], j)
	}
	for _, repo := range repos {
		jobs := byRepo[repo]
		c := w.chores[jobsOf(repo)]
		if !w.serves(repo) {
			continue
		}
		if c != nil && len(jobs) > askSingly {
			for _, j := range jobs {
				w.asked[j.ID] = time.Now()
			}
			w.do(ctx, c)
			continue
		}
		for _, j := range jobs {
			if failed.hopeless(ctx) {
				break
			}
			asked := time.Now()
			news, there, err := w.c.GitHub.Job(ctx, repo, j.ID)
			if err != nil {
				failed.add(fmt.Errorf("ask for job %d of %s: %w", j.ID, repo, err))
				continue // it is in doubt still
			}
			w.asked[j.ID] = asked
			if !there && c != nil {
				w.do(ctx, c)
			}
			if there {
				if err := w.c.Learn(ctx, repo, []fleet.JobNews{news}); err != nil {
					return err
				}
			}
		}
	}
	return failed.joined()
}

func sameRepo(j fleet.Job, repo fleet.Scope) bool {
	return fleet.Scope{Owner: j.Owner, Repo: j.Repo}.Key() == repo.Key()
}
