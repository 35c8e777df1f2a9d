// SPDX-License-Identifier: MIT

package githubsim

import (
	"slices"
	"time"
)

// scaleSet is a runner scale set: GitHub gives it jobs, its message queue tells of them,
// and its runners run them.
type scaleSet struct {
	id            int64
	name          string
	scope         scope
	groupID       int64
	groupName     string
	labels        []string
	disableUpdate bool
	createdAt     time.Time

	session     *setSession
	capacity    int // as the newest poll said
	queue       []*setMessage
	lastMessage int64
	wake        chan struct{}
	sent        int // messages, each as often as it was sent
}

// setSession is the one that may read a scale set's queue.
type setSession struct {
	id, owner    string
	token        string
	tokenExpires time.Time
	polls        int // open long polls
	pollSeq      int
	lastSeen     time.Time
}

// setMessage is kept, and sent again, until it is deleted.
type setMessage struct {
	id   int64
	news []object
	sent bool
}

// maxSetNews is how much news one message holds.
const maxSetNews = 50

// ScaleSet is a runner scale set as it was when the Sim was asked.
type ScaleSet struct {
	ID            int64    `json:"id"`
	Name          string   `json:"name"`
	Scope         string   `json:"scope"`
	Group         string   `json:"group"`
	Labels        []string `json:"labels"`
	DisableUpdate bool     `json:"disable_update"`
	Session       string   `json:"session,omitempty"` // the owner of the open one
	Capacity      int      `json:"capacity"`          // as its reader said last
	Unread        int      `json:"unread"`            // messages that were not deleted yet
	Sent          int      `json:"sent"`              // messages, each as often as it was sent
	Assigned      int      `json:"assigned"`          // jobs that are not over
	Running       int      `json:"running"`
}

// ScaleSets returns all scale sets, in the order of their creation.
func (s *Sim) ScaleSets() []ScaleSet {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := []ScaleSet{}
	for _, set := range s.sets {
		n := s.setStatistics(set)
		v := ScaleSet{
			ID: set.id, Name: set.name, Scope: set.scope.String(), Group: set.groupName, Labels: slices.Clone(set.labels), DisableUpdate: set.disableUpdate,
			Capacity: set.capacity, Unread: len(set.queue), Sent: set.sent, Assigned: n.assigned, Running: n.running,
		}
		if set.session != nil {
			v.Session = set.session.owner
		}
		out = append(out, v)
	}
	return out
}

// ExpireSetTokens ends the validity of all tokens of message queues.
func (s *Sim) ExpireSetTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range s.sets {
		if set.session != nil {
			set.session.tokenExpires = time.Time{}
			set.signal()
		}
	}
}

// EndSetSessions ends all message sessions, as GitHub does with those that it thinks gone.
func (s *Sim) EndSetSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, set := range s.sets {
		set.session = nil
		set.signal()
	}
}

// OccupyScaleSet lets another client hold the session of a scale set, until EndSetSessions.
func (s *Sim) OccupyScaleSet(id int64, owner string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setByID(id)
	if set == nil {
		return false
	}
	set.session = &setSession{id: newGUID(), owner: owner, token: newToken("queue_"), polls: 1}
	set.signal()
	s.change()
	return true
}

func (s *Sim) setByID(id int64) *scaleSet {
	i := slices.IndexFunc(s.sets, func(set *scaleSet) bool { return set.id == id })
	if i < 0 {
		return nil
	}
	return s.sets[i]
}

func (set *scaleSet) signal() {
	select {
	case set.wake <- struct{}{}:
	default:
	}
}

// serves reports whether the set's runners may run a job, by labels and by repository.
func (s *Sim) setServes(set *scaleSet, j *job) bool {
	r := &runner{labels: set.labels, scope: set.scope}
	return r.serves(j, s.group(set.scope.owner, set.groupID))
}

// setStatistics counts as GitHub's messages do.
func (s *Sim) setStatistics(set *scaleSet) (n struct{ available, acquired, assigned, running, registered, busy, idle int }) {
	for _, j := range s.jobs {
		switch {
		case j.set == nil && j.status == "queued" && s.setServes(set, j):
			n.available++
		case j.set == set && !j.done():
			n.acquired++
			n.assigned++
			if j.status == "in_progress" {
				n.running++
			}
		}
	}
	for _, r := range s.runners {
		if r.set != set || r.removed() {
			continue
		}
		n.registered++
		if r.job != nil {
			n.busy++
		} else {
			n.idle++
		}
	}
	return n
}

// assignSets gives queued jobs, oldest first, to scale sets that have room and whose queue
// is read. The caller holds mu.
func (s *Sim) assignSets() {
	for _, set := range s.sets {
		if set.session == nil || set.capacity == 0 {
			continue
		}
		room := set.capacity - s.setStatistics(set).assigned
		for _, j := range s.jobs {
			if room <= 0 {
				break
			}
			if j.set != nil || j.status != "queued" || !s.setServes(set, j) {
				continue
			}
			room--
			if !s.opt.Acquire {
				s.giveToSet(set, j)
			} else if !j.offered[set.id] {
				j.offered[set.id] = true
				s.tellSet(set, j, "JobAvailable", object{"acquireJobUrl": "https://unused.example/acquire"})
			}
		}
	}
}

func (s *Sim) giveToSet(set *scaleSet, j *job) {
	j.set, j.setAt = set, time.Now()
	s.tellSet(set, j, "JobAssigned", nil)
	s.change()
}

// tellSet queues news of a job. A fault loses it.
func (s *Sim) tellSet(set *scaleSet, j *job, kind string, more object) {
	if s.faults.take(func(f *Fault) bool { return f.Kind == MessageLost && (f.Path == "" || f.Path == kind) }) != nil {
		return
	}
	news := object{
		"messageType": kind, "runnerRequestId": int64(0), "jobId": j.guid, "repositoryName": j.run.repo.name, "ownerName": j.run.repo.owner.login,
		"jobWorkflowRef": j.run.repo.fullName() + "/" + j.run.workflowPath() + "@refs/heads/" + j.run.workflow.Branch,
		"jobDisplayName": j.spec.Name, "workflowRunId": j.run.id, "eventName": j.run.workflow.Event, "requestLabels": j.spec.Labels,
		"queueTime": s.stampOf(j.queuedAt), "scaleSetAssignTime": s.stampOf(j.setAt), "runnerAssignTime": s.stampOf(j.startedAt), "finishTime": s.stampOf(j.completedAt),
	}
	if s.opt.Acquire { // older servers name jobs by the request alone
		news["runnerRequestId"] = j.requestID
		delete(news, "jobId")
	}
	for k, v := range more {
		news[k] = v
	}
	if n := len(set.queue); n == 0 || set.queue[n-1].sent || len(set.queue[n-1].news) == maxSetNews {
		set.lastMessage++
		set.queue = append(set.queue, &setMessage{id: set.lastMessage})
	}
	m := set.queue[len(set.queue)-1]
	m.news = append(m.news, news)
	set.signal()
}

// setStarted and setFinished tell a job's scale set what has become of it.
func (s *Sim) setStarted(j *job) {
	if j.set != nil {
		s.tellSet(j.set, j, "JobStarted", object{"runnerId": j.runnerID, "runnerName": j.runnerName})
	}
}

func (s *Sim) setFinished(j *job) {
	if j.set == nil {
		return
	}
	result := map[string]string{"success": "succeeded", "failure": "failed", "cancelled": "canceled"}[j.conclusion]
	s.tellSet(j.set, j, "JobCompleted", object{"result": orString(result, j.conclusion), "runnerId": j.runnerID, "runnerName": j.runnerName})
}

// stampOf writes a time as the service does, one that has not come as .NET's first.
func (s *Sim) stampOf(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return s.clock.of(t).UTC().Format("2006-01-02T15:04:05.000000Z")
}
