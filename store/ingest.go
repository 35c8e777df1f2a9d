// SPDX-License-Identifier: MIT

package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// Ingest stores a delivery and what was read out of it, in one transaction. A
// GUID that is known and has not failed changes nothing. GitHub's own answers, and what
// scale sets tell, come without a delivery, and nothing but the jobs or the run is stored
// of them.
func (s *Store) Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	var out fleet.Ingested
	err := s.change(ctx, func(t *tx) error {
		out = fleet.Ingested{}
		if in.Message != nil {
			var err error
			out, err = t.takeMessage(*in.Message)
			crashpoint.Reached(crashpoint.IngestWritten)
			return err
		}
		if in.Delivery.GUID == "" {
			var err error
			if out.Changed, err = t.learnAll(in.Answers); err == nil && in.Run != nil {
				out.Changed, err = t.learnRun(*in.Run)
			}
			crashpoint.Reached(crashpoint.IngestWritten)
			return err
		}
		known, err := t.remember(in.Delivery)
		if err != nil {
			return fmt.Errorf("delivery %s: %w", in.Delivery.GUID, err)
		}
		if known {
			out.Duplicate = true
			return nil
		}
		switch {
		case in.Job != nil:
			out.Changed, err = t.learn(*in.Job)
		case in.Run != nil:
			out.Changed, err = t.learnRun(*in.Run)
		case in.Installation != nil:
			out.Changed, err = true, t.learnInstallation(*in.Installation)
		}
		crashpoint.Reached(crashpoint.IngestWritten)
		return err
	})
	crashpoint.Reached(crashpoint.IngestCommitted)
	return out, err
}

// Learn stores news about a job that no delivery brought: GitHub's own answer.
func (s *Store) Learn(ctx context.Context, news fleet.JobNews) error {
	return s.change(ctx, func(t *tx) error {
		_, err := t.learn(news)
		return err
	})
}

// remember stores the delivery and reports whether it was there and needs nothing
// more.
func (t *tx) remember(d fleet.Delivery) (known bool, err error) {
	var status string
	err = t.row(`SELECT status FROM deliveries WHERE guid = $1`, d.GUID).Scan(&status)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, t.exec(`INSERT INTO deliveries (guid, event, action, installation_id, repository, received_at, status, reason, times, payload)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,1,$9)`,
			d.GUID, d.Event, d.Action, d.InstallationID, d.Repository, micros(d.ReceivedAt), string(d.Status), d.Reason, d.Payload)
	case err != nil:
		return false, err
	case fleet.DeliveryStatus(status) == fleet.DeliveryFailed:
		return false, t.exec(`UPDATE deliveries SET event = $2, action = $3, installation_id = $4, repository = $5,
			status = $6, reason = $7, times = times + 1, payload = $8 WHERE guid = $1`, // it ages from its first coming
			d.GUID, d.Event, d.Action, d.InstallationID, d.Repository, string(d.Status), d.Reason, d.Payload)
	default:
		return true, t.exec(`UPDATE deliveries SET times = times + 1 WHERE guid = $1`, d.GUID)
	}
}

const jobColumns = `id, run_id, run_attempt, installation_id, owner, repo, workflow, name, labels, state, conclusion,
	runner_name, url, created_at, heard_at, queued_at, started_at, completed_at, told_at, asked_at, passed_over, passed_at, visibility, pool, set_key`

func scanJob(row scanner) (fleet.Job, error) {
	var (
		j                                           fleet.Job
		labels, state                               string
		created, heard, queued, started, completedA int64
		told, asked, passed                         int64
	)
	err := row.Scan(&j.ID, &j.RunID, &j.RunAttempt, &j.InstallationID, &j.Owner, &j.Repo, &j.Workflow, &j.Name, &labels, &state, &j.Conclusion,
		&j.RunnerName, &j.URL, &created, &heard, &queued, &started, &completedA, &told, &asked, &j.PassedOver, &passed, &j.Visibility, &j.Pool, &j.SetKey)
	if labels != "" {
		j.Labels = strings.Split(labels, "\n")
	}
	j.State = fleet.JobState(state)
	j.CreatedAt, j.HeardAt, j.QueuedAt = fromMicros(created), fromMicros(heard), fromMicros(queued)
	j.StartedAt, j.CompletedAt = fromMicros(started), fromMicros(completedA)
	j.ToldAt, j.AskedAt, j.PassedAt = fromMicros(told), fromMicros(asked), fromMicros(passed)
	return j, err
}

func (t *tx) job(id fleet.JobID) (fleet.Job, error) {
	j, err := scanJob(t.row(`SELECT `+jobColumns+` FROM jobs WHERE id = $1`, int64(id)))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Job{}, nil // the table's unknown state
	}
	return j, err
}

func (t *tx) learnAll(answers []fleet.JobNews) (changed bool, err error) {
	for _, news := range answers {
		moved, err := t.learn(news)
		if err != nil {
			return false, err
		}
		changed = changed || moved
	}
	return changed, nil
}

// learn moves a job by its table and binds the runner that GitHub names.
func (t *tx) learn(news fleet.JobNews) (changed bool, err error) {
	was, err := t.job(news.Job.ID)
	if err != nil {
		return false, fmt.Errorf("job %d: %w", news.Job.ID, err)
	}
	is := was.Learn(news, t.now)
	if is.State == fleet.JobUnknown {
		return false, nil
	}
	if was.State != is.State || was.RunnerName != is.RunnerName || was.Conclusion != is.Conclusion || was.Visibility != is.Visibility {
		changed, t.changed = true, true
	}
	newer := was.State != fleet.JobCompleted && (!is.ToldAt.Equal(was.ToldAt) || !is.AskedAt.Equal(was.AskedAt))
	if changed || newer {
		if err := t.saveJob(is); err != nil {
			return false, fmt.Errorf("job %d: %w", is.ID, err)
		}
	}
	if err := t.bind(was, is); err != nil {
		return false, fmt.Errorf("job %d: bind runner: %w", is.ID, err)
	}
	return changed, nil
}

func (t *tx) saveJob(j fleet.Job) error {
	t.touched.jobs[j.ID] = true
	return t.exec(`INSERT INTO jobs (`+jobColumns+`, repository_key)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18,$19,$20,$21,$22,$23,$24,$25,$26)
		ON CONFLICT (id) DO UPDATE SET labels = excluded.labels, state = excluded.state, conclusion = excluded.conclusion,
			runner_name = excluded.runner_name, queued_at = excluded.queued_at, started_at = excluded.started_at, completed_at = excluded.completed_at,
			told_at = excluded.told_at, asked_at = excluded.asked_at,
			passed_over = excluded.passed_over, passed_at = excluded.passed_at, visibility = excluded.visibility`,
		int64(j.ID), j.RunID, j.RunAttempt, j.InstallationID, j.Owner, j.Repo, j.Workflow, j.Name, strings.Join(j.Labels, "\n"), string(j.State), j.Conclusion,
		j.RunnerName, j.URL, micros(j.CreatedAt), micros(j.HeardAt), micros(j.QueuedAt), micros(j.StartedAt), micros(j.CompletedAt),
		micros(j.ToldAt), micros(j.AskedAt), j.PassedOver, micros(j.PassedAt), string(j.Visibility), j.Pool, j.SetKey, strings.ToLower(j.Repository()))
}

// bind ties the job to the runner of its name, and lets go of a runner that it
// was taken from.
func (t *tx) bind(was, is fleet.Job) error {
	if was.RunnerName != "" && was.RunnerName != is.RunnerName {
		if err := t.unbind(is.ID); err != nil {
			return err
		}
	}
	if is.RunnerName == "" || (is.State != fleet.JobInProgress && is.State != fleet.JobCompleted) {
		return nil
	}
	var id string
	err := t.row(`SELECT runner FROM mints WHERE name = $1`, is.RunnerName).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil // somebody else's runner
	}
	if err != nil {
		return err
	}
	r, err := t.runner(fleet.RunnerID(id))
	if errors.Is(err, fleet.ErrNotFound) {
		return nil // long gone
	}
	if err != nil {
		return err
	}
	switch {
	case !r.Scope.Covers(is.Owner, is.Repo), r.GitHubID != 0 && is.RunnerID != 0 && r.GitHubID != is.RunnerID:
		return nil // a runner of another registration that bears the same name
	case is.Pool != "" && r.Pool != is.Pool:
		return nil // no runner of that scale set
	case r.Job != 0 && r.Job != is.ID:
		return nil // it has its one job: this one was taken from it before
	}
	next := r
	next.Job = is.ID
	detail := "GitHub: job " + is.Name + " started"
	next.Registration = next.Registration.Next(fleet.RegStarted)
	if is.State == fleet.JobCompleted {
		next.JobDone = true // whether the registration went with it, the guest says
		detail = "GitHub: job " + is.Name + " completed: " + is.Conclusion
	}
	_, err = t.saveRunner(r, next, detail)
	return err
}

// unbind frees the runner of a job that GitHub took back.
func (t *tx) unbind(id fleet.JobID) error {
	rows, err := t.QueryContext(t.ctx, `SELECT `+runnerColumns+` FROM runners WHERE job = $1 AND job_done = 0`, int64(id))
	bound, err := collect(rows, err, scanRunner)
	if err != nil {
		return err
	}
	for _, r := range bound {
		next := r
		next.Job = 0
		if _, err := t.saveRunner(r, next, "GitHub took the job back"); err != nil {
			return err
		}
	}
	return nil
}

// learnInstallation takes in what a delivery tells. An id that was deleted never
// comes back, so late news of it is old. What was refused there is tried again: the App may
// have been resumed, or been given a permission or a repository.
func (t *tx) learnInstallation(i fleet.Installation) error {
	if !i.Suspended && !i.Deleted {
		if err := t.tryAgain(i.Account); err != nil {
			return err
		}
	}
	return t.saveInstallation(i, ` WHERE installations.deleted = 0`)
}

func (t *tx) saveInstallation(i fleet.Installation, unless string) error {
	t.touched.installations = true
	return t.exec(`INSERT INTO installations (id, account, suspended, deleted) VALUES ($1,$2,$3,$4)
		ON CONFLICT (id) DO UPDATE SET account = excluded.account, suspended = excluded.suspended, deleted = excluded.deleted`+unless,
		i.ID, i.Account, bit(i.Suspended), bit(i.Deleted))
}

// InstallationIDs returns the installations that are known and not deleted.
func (s *Store) InstallationIDs(ctx context.Context) ([]int64, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT id FROM installations WHERE deleted = 0`)
	return collect(rows, err, func(row scanner) (id int64, err error) { return id, row.Scan(&id) })
}

// SetInstallations takes in GitHub's own list. Of those that were known before it
// was asked for, the ones that it lacks are deleted; what a delivery told meanwhile
// stays. What an earlier list lacked by mistake is there again. Where the App is now and
// was not, what was refused is tried again.
func (s *Store) SetInstallations(ctx context.Context, list []fleet.Installation, before []int64) error {
	return s.change(ctx, func(t *tx) error {
		t.touched.installations = true
		rows, err := t.QueryContext(t.ctx, `SELECT id FROM installations WHERE deleted = 0 AND suspended = 0`)
		served, err := collect(rows, err, func(row scanner) (id int64, err error) { return id, row.Scan(&id) })
		if err != nil {
			return fmt.Errorf("read installations: %w", err)
		}
		there := map[int64]bool{}
		for _, i := range list {
			there[i.ID] = true
			if !i.Suspended && !slices.Contains(served, i.ID) {
				if err := t.tryAgain(i.Account); err != nil {
					return err
				}
			}
			if err := t.saveInstallation(i, ""); err != nil {
				return err
			}
		}
		for _, id := range before {
			if !there[id] {
				if err := t.exec(`UPDATE installations SET deleted = 1 WHERE id = $1`, id); err != nil {
					return err
				}
			}
		}
		return t.exec(`INSERT INTO meta (name, value) VALUES ('installations_at', $1)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, fmt.Sprint(micros(t.now)))
	})
}

// FailedDeliveries returns failed deliveries of installations that are known by
// now, with their payloads, oldest first, at most 1,000: those that overtook the
// news of their installation.
func (s *Store) FailedDeliveries(ctx context.Context) ([]fleet.Delivery, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT guid, event, action, installation_id, repository, received_at, status, reason, payload
		FROM deliveries WHERE status = 'failed' AND payload IS NOT NULL
		AND installation_id IN (SELECT id FROM installations WHERE deleted = 0) ORDER BY received_at, guid LIMIT 1000`)
	list, err := collect(rows, err, func(row scanner) (fleet.Delivery, error) {
		var (
			d      fleet.Delivery
			at     int64
			status string
		)
		err := row.Scan(&d.GUID, &d.Event, &d.Action, &d.InstallationID, &d.Repository, &at, &status, &d.Reason, &d.Payload)
		d.ReceivedAt, d.Status = fromMicros(at), fleet.DeliveryStatus(status)
		return d, err
	})
	if err != nil {
		return nil, fmt.Errorf("failed deliveries: %w", err)
	}
	return list, nil
}

// KnownInstallation reports whether the App is installed there, as far as is
// known: before GitHub's list was ever read, every installation passes.
func (s *Store) KnownInstallation(_ context.Context, id int64) (bool, error) {
	if err := s.ended(); err != nil {
		return false, err
	}
	return s.mirror.knows(id), nil
}
