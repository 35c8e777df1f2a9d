// SPDX-License-Identifier: MIT

package scalesets

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/actions/scaleset"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
)

// errCapacity ends a poll because the pool has more or less room by now.
var errCapacity = errors.New("the pool's room has changed")

// poll waits for the next message after the last one, as long as GitHub lets it: nil means
// that there is none. GitHub is told how many jobs the pool has room for, and gives the set
// no more.
func (s *set) poll(ctx context.Context, ses *scaleset.MessageSessionClient, last int) (*scaleset.RunnerScaleSetMessage, error) {
	room, err := s.room(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { s.watchRoom(ctx, room, cancel) })
	var msg *scaleset.RunnerScaleSetMessage
	err = s.callWithin(ctx, pollWithin, "read the message queue", func(ctx context.Context) (err error) {
		msg, err = ses.GetMessage(ctx, last, room)
		if err == nil && msg != nil && msg.Statistics == nil {
			msg = nil
			return errNoStatistics
		}
		return err
	})
	if err != nil && errors.Is(context.Cause(ctx), errCapacity) {
		err = errCapacity
	}
	cancel(nil)
	watch.Wait()
	return msg, err
}

// pollWithin is more than GitHub holds a poll for, which is some 50 s.
const pollWithin = 2 * time.Minute

// room is how many jobs the pool can run at once: as many as the hosts that were heard of
// lately have slots for, and no more than its limit.
func (s *set) room(ctx context.Context) (int, error) {
	state, err := s.c.Store.State(ctx)
	if err != nil {
		return 0, fmt.Errorf("count the room of the pool: %w", err)
	}
	n, now := 0, time.Now()
	for i := range state.Hosts {
		if h := &state.Hosts[i]; s.pool.FitsOn(h) && now.Sub(h.SeenAt) < s.c.HostDeadline {
			n += h.Slots
		}
	}
	if s.pool.MaxRunners > 0 {
		n = min(n, s.pool.MaxRunners)
	}
	return n, nil
}

const (
	// breath is the shortest time between two looks at the room.
	breath = time.Second
	// Hosts fall silent without anything being changed.
	lookAgain = 10 * time.Second
)

// watchRoom ends a poll when the room is not as GitHub was told.
func (s *set) watchRoom(ctx context.Context, told int, end context.CancelCauseFunc) {
	for {
		changed := s.c.Store.Changed()
		if room, err := s.room(ctx); err == nil && room != told {
			end(errCapacity)
			return
		}
		timer := time.NewTimer(lookAgain)
		select {
		case <-changed:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if !pause(ctx, breath) {
			return
		}
	}
}

// handleWithin bounds the handling of a message, which goes on when the program stops.
const handleWithin = 10 * time.Second

// handle takes jobs that are offered, has all news stored, and only then acknowledges the
// message: whatever happens before, it comes again.
func (s *set) handle(ctx context.Context, ses *scaleset.MessageSessionClient, msg *scaleset.RunnerScaleSetMessage) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handleWithin)
	defer cancel()
	if len(msg.JobAvailableMessages) > 0 {
		ids := make([]int64, 0, len(msg.JobAvailableMessages))
		for _, j := range msg.JobAvailableMessages {
			ids = append(ids, j.RunnerRequestID)
		}
		// Whatever of it the set gets, it is told of by later messages.
		if err := s.call(ctx, "acquire jobs", func(ctx context.Context) error {
			_, err := ses.AcquireJobs(ctx, ids)
			return err
		}); err != nil {
			return err
		}
		crashpoint.Reached(crashpoint.SetJobsAcquired)
	}
	m := s.message(int64(msg.MessageID), msg.Statistics)
	m.Jobs = s.news(msg)
	done, err := s.take(ctx, m)
	if err != nil {
		return err
	}
	crashpoint.Reached(crashpoint.SetMessageStored)
	s.log.Debug("message stored", "message", msg.MessageID, "jobs", len(m.Jobs), "assigned", m.Assigned, "running", m.Running, "duplicate", done.Duplicate)
	return s.call(ctx, "acknowledge a message", func(ctx context.Context) error { return ses.DeleteMessage(ctx, msg.MessageID) })
}

// message begins what is stored of a message, or of an answer about the set if id is 0.
func (s *set) message(id int64, n *scaleset.RunnerScaleSetStatistic) fleet.SetMessage {
	return fleet.SetMessage{Pool: s.pool.Name, Set: s.id.Load(), ID: id, Assigned: max(n.TotalAssignedJobs, 0), Running: max(n.TotalRunningJobs, 0)}
}

// take has a message stored.
func (s *set) take(ctx context.Context, m fleet.SetMessage) (fleet.Ingested, error) {
	done, err := s.c.Store.Ingest(ctx, fleet.Ingest{Message: &m})
	if err != nil {
		return done, fmt.Errorf("store what the scale set's queue said: %w", err)
	}
	s.tally = tally{m.Assigned, m.Running}
	if done.Changed {
		s.c.Wake()
	}
	return done, nil
}

// news reads the jobs of a message.
func (s *set) news(msg *scaleset.RunnerScaleSetMessage) []fleet.JobNews {
	var out []fleet.JobNews
	add := func(e fleet.JobEvent, base *scaleset.JobMessageBase, runner string, runnerID int, result string) {
		j, ok := s.job(base)
		if !ok {
			s.log.Warn("news of a job without an id passed over; the count of jobs shows it", "message", msg.MessageID, "run", base.WorkflowRunID)
			return
		}
		j.RunnerName, j.RunnerID, j.Conclusion = clean(runner, 256), int64(max(runnerID, 0)), conclusion(result)
		out = append(out, fleet.JobNews{Event: e, Job: j})
	}
	for _, j := range msg.JobAssignedMessages {
		add(fleet.ToldQueued, &j.JobMessageBase, "", 0, "")
	}
	for _, j := range msg.JobStartedMessages {
		add(fleet.ToldInProgress, &j.JobMessageBase, j.RunnerName, j.RunnerID, "")
	}
	for _, j := range msg.JobCompletedMessages {
		add(fleet.ToldCompleted, &j.JobMessageBase, j.RunnerName, j.RunnerID, j.Result)
	}
	return out
}

// job reads what messages say of a job, and returns false if they do not name it. The
// service names it by an id of its own, an older server by the number of the request.
func (s *set) job(m *scaleset.JobMessageBase) (fleet.Job, bool) {
	key := clean(m.JobID, 128)
	if key == "" && m.RunnerRequestID != 0 {
		key = fmt.Sprintf("request %d", m.RunnerRequestID)
	}
	if key == "" {
		return fleet.Job{}, false
	}
	at, err := fleet.ParseScope(m.OwnerName + "/" + m.RepositoryName)
	if err != nil {
		at = s.scope
	}
	workflow, _, _ := strings.Cut(m.JobWorkflowRef, "@")
	j := fleet.Job{
		SetKey: fmt.Sprintf("%d/%s", s.id.Load(), key), RunID: max(m.WorkflowRunID, 0), Owner: at.Owner, Repo: at.Repo,
		Workflow: clean(strings.TrimPrefix(workflow, at.String()+"/"), 512), Name: clean(m.JobDisplayName, 512),
		CreatedAt: cmp.Or(m.QueueTime, m.ScaleSetAssignTime).UTC(),
	}
	for _, l := range m.RequestLabels[:min(len(m.RequestLabels), 100)] {
		j.Labels = append(j.Labels, clean(l, 256))
	}
	j.Labels = fleet.NewLabels(j.Labels...)
	if j.CreatedAt.Year() < 2000 { // .NET's first moment
		j.CreatedAt = time.Now().UTC()
	}
	if at.Repo != "" && j.RunID > 0 {
		j.URL = fmt.Sprintf("%s/%s/actions/runs/%d", s.c.WebURL, at, j.RunID)
	}
	return j, true
}

// conclusion puts the service's word for the end of a job into that of GitHub's other
// interfaces.
func conclusion(result string) string {
	switch word := strings.ToLower(clean(result, 64)); word {
	case "succeeded", "succeeded_with_issues", "succeededwithissues":
		return "success"
	case "failed":
		return "failure"
	case "canceled":
		return "cancelled"
	default:
		return word
	}
}
