// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto/rsa"
	"maps"
	"slices"
	"strings"
	"time"
)

// account is a user or an organization.
type account struct {
	id     int64
	login  string
	org    bool
	groups []*runnerGroup // organizations only
}

type repository struct {
	id        int64
	owner     *account
	name      string
	private   bool
	fork      bool
	createdAt time.Time
	clock     clock
}

func (r *repository) fullName() string { return r.owner.login + "/" + r.name }

type runnerGroup struct {
	id          int64
	name        string
	visibility  string // all, selected, private
	isDefault   bool
	allowPublic bool
	repos       map[int64]bool // for visibility selected
}

func (g *runnerGroup) admits(r *repository) bool {
	switch {
	case !r.private && !g.allowPublic:
		return false
	case g.visibility == "selected":
		return g.repos[r.id]
	case g.visibility == "private":
		return r.private
	default:
		return true
	}
}

type installation struct {
	id          int64
	account     *account
	all         bool // every repository of the account, else repos
	repos       map[int64]bool
	permissions map[string]string
	suspendedAt time.Time
	createdAt   time.Time
	updatedAt   time.Time
}

func (in *installation) covers(r *repository) bool {
	return r.owner == in.account && (in.all || in.repos[r.id])
}

// scope is where a runner is registered: an organization, or one repository.
type scope struct {
	owner *account
	repo  *repository // nil for an organization
}

func (s scope) String() string {
	if s.repo != nil {
		return s.repo.fullName()
	}
	return s.owner.login
}

// runnerToken is what an OAuth exchange gives a runner. A newer one does not end it.
type runnerToken struct {
	of      *runner
	expires time.Time
}

type runner struct {
	id         int64
	name       string
	labels     []string
	scope      scope
	groupID    int64
	groupName  string
	workFolder string

	clientID string
	key      *rsa.PrivateKey

	set      *scaleSet // that it belongs to, nil if none
	session  *session
	job      *job // offered or running
	os       string
	version  string
	polls    int // open long polls
	pollSeq  int // the newest poll; an older one yields to it
	lastSeen time.Time
	wake     chan struct{}

	createdAt  time.Time
	listedAt   time.Time // when lists start to show it
	busyAt     time.Time // when `busy` starts to show
	onlineAt   time.Time
	removedAt  time.Time
	removedWhy string
}

func (r *runner) removed() bool { return !r.removedAt.IsZero() }

// alive reports whether the runner can be offered a job.
func (r *runner) alive(now time.Time, offlineAfter time.Duration) bool {
	return !r.removed() && r.session != nil && (r.polls > 0 || now.Sub(r.lastSeen) < offlineAfter)
}

func (r *runner) status(now time.Time, offlineAfter time.Duration) string {
	if r.alive(now, offlineAfter) {
		return "online"
	}
	return "offline"
}

// seemsBusy is `busy` as the REST API shows it, which lags.
func (r *runner) seemsBusy(now time.Time) bool { return r.job != nil && !now.Before(r.busyAt) }

// serves reports whether a job may run here by labels and by repository.
func (r *runner) serves(j *job, group *runnerGroup) bool {
	if len(j.spec.Labels) == 0 {
		return false
	}
	for _, want := range j.spec.Labels {
		if !slices.ContainsFunc(r.labels, func(have string) bool { return strings.EqualFold(have, want) }) {
			return false
		}
	}
	if r.scope.repo != nil {
		return r.scope.repo == j.run.repo
	}
	return r.scope.owner == j.run.repo.owner && group != nil && group.admits(j.run.repo)
}

func (r *runner) signal() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

type session struct {
	id     string
	broker bool
	aesKey []byte // nil: messages in the clear
	queue  []*message
}

type message struct {
	id     int64
	kind   string
	body   []byte
	sentAt time.Time
}

// drop removes the messages that match.
func (ses *session) drop(match func(*message) bool) { ses.queue = slices.DeleteFunc(ses.queue, match) }

type run struct {
	id         int64
	number     int
	repo       *repository
	headRepo   *repository
	actor      *account
	workflow   Workflow
	workflowID int64
	sha        string
	attempts   [][]*job
	startedBy  []*account // of each attempt
	status     string     // requested, queued, waiting, in_progress, completed
	conclusion string
	createdAt  time.Time
	startedAt  time.Time // of the latest attempt
	updatedAt  time.Time
	deleted    bool

	listedAs string    // what lists show until listedAt; "": nothing yet
	listedAt time.Time // from when on lists show what is
}

// move gives a run a status. Lists learn of it later.
func (s *Sim) move(r *run, status, conclusion string, now time.Time) {
	if !now.Before(r.listedAt) {
		r.listedAs = r.status
	}
	r.listedAt = now.Add(max(0, s.timing.ListLag) / 2)
	r.status, r.conclusion, r.updatedAt = status, conclusion, now
}

// listed returns the status and conclusion by which a list finds the run, and false if
// it does not show it yet.
func (r *run) listed(now time.Time) (status, conclusion string, ok bool) {
	if now.Before(r.listedAt) {
		return r.listedAs, "", r.listedAs != ""
	}
	return r.status, r.conclusion, true
}

func (r *run) latest() []*job { return r.attempts[len(r.attempts)-1] }

// statusAssigned is a queued job that has been offered to a runner.
const statusAssigned = "assigned"

type job struct {
	id         int64
	run        *run
	attempt    int
	spec       JobSpec
	status     string // waiting, queued, assigned, in_progress, completed
	conclusion string
	reason     string

	set     *scaleSet      // that it was given to, nil if none
	setAt   time.Time      // when it was
	offered map[int64]bool // to scale sets, by id, that have to ask for it

	runner     *runner // while offered or running
	runnerID   int64
	runnerName string
	groupID    int64
	groupName  string
	offers     int

	requestID                      int64
	guid, plan, timeline, scopeID  string
	token                          string // the job's own, for the runner that it was last offered to
	blobKey                        string // signs the URLs of its logs
	steps                          map[string]*JobStep
	logs                           map[string]*strings.Builder
	logOrder                       []string
	logSeq                         int
	jobLog                         string // id of the log of the whole job
	feed                           []string
	renewals                       int
	cancelled                      bool
	renewedAt                      time.Time
	createdAt, queuedAt, startedAt time.Time
	onlineAt, webhookAt            time.Time
	completedAt                    time.Time
}

func (j *job) publicStatus() string {
	if j.status == statusAssigned {
		return "queued"
	}
	return j.status
}

func (j *job) done() bool { return j.status == "completed" }

func (j *job) log(id string) *strings.Builder {
	if j.logs[id] == nil {
		j.logs[id] = &strings.Builder{}
		j.logOrder = append(j.logOrder, id)
	}
	return j.logs[id]
}

func (j *job) sortedSteps() []*JobStep {
	return slices.SortedFunc(maps.Values(j.steps), func(a, b *JobStep) int {
		if a.Number != b.Number {
			return a.Number - b.Number
		}
		return strings.Compare(a.Name, b.Name)
	})
}
