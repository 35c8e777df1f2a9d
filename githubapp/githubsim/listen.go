// SPDX-License-Identifier: MIT

package githubsim

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// What ends a Listener's step otherwise than well.
var (
	// ErrRemoved says that the registration is gone.
	ErrRemoved = errors.New("the registration has been deleted")
	// ErrConflict says that another session is open for the registration.
	ErrConflict = errors.New("the runner has an active session already")
	// ErrLate says that the job that was offered is another runner's by now, or
	// nobody's. GitHub has removed the registration: a real listener goes on and hears
	// nothing any more (actions/runner#4617).
	ErrLate = errors.New("the job assignment is invalid")
	// ErrCancelled says that GitHub asks for the end of the job.
	ErrCancelled = errors.New("the job is cancelled")
	// ErrOver says that GitHub has ended the job by itself.
	ErrOver = errors.New("the job is over at GitHub")
)

// renewEvery is how often a runner renews the lock of its job.
const renewEvery = time.Minute

// Listener is a runner without the wire between it and the Actions service, for
// simulations that have thousands of them. Sessions, offers, leases and ends are the
// service's own; HTTP, signatures and encryption are left out. It is online until
// Close or Abandon, and for one goroutine at a time.
type Listener struct {
	sim     *Sim
	ru      *runner
	session *session
	job     *job
}

// Listen opens a session for the registration of a JIT config.
func (s *Sim) Listen(config secret.Text) (*Listener, error) {
	id, err := clientOf(config)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ru := s.byClientID(id)
	if ru == nil || ru.removed() {
		return nil, ErrRemoved
	}
	ses := s.openSession(ru, sessionRequest{}, true)
	if ses == nil {
		return nil, ErrConflict
	}
	ru.polls++
	s.assign()
	return &Listener{sim: s, ru: ru, session: ses}, nil
}

// clientOf reads what identifies the registration in a JIT config.
func clientOf(config secret.Text) (string, error) {
	var files map[string][]byte
	var credentials struct{ Data struct{ ClientID string } }
	raw, err := base64.StdEncoding.DecodeString(config.Reveal())
	if err != nil || json.Unmarshal(raw, &files) != nil || json.Unmarshal(files[".credentials"], &credentials) != nil {
		return "", errors.New("this is not a JIT config")
	}
	return credentials.Data.ClientID, nil
}

// Name is the registration's.
func (l *Listener) Name() string { return l.ru.name }

// Next waits for the offer of a job.
func (l *Listener) Next(ctx context.Context) (Job, error) {
	for {
		l.sim.mu.Lock()
		j, err := l.offered()
		l.sim.mu.Unlock()
		if j != nil || err != nil {
			return Job{ID: l.id(j)}, err
		}
		select {
		case <-l.ru.wake:
		case <-ctx.Done():
			return Job{}, context.Cause(ctx)
		case <-l.sim.ctx.Done():
			return Job{}, ErrClosed
		}
	}
}

func (l *Listener) id(j *job) int64 {
	if j == nil {
		return 0
	}
	return j.id
}

// offered returns the job of the next message. The caller holds the Sim's mu.
func (l *Listener) offered() (*job, error) {
	if l.ru.removed() || l.ru.session != l.session {
		return nil, ErrRemoved
	}
	m := l.session.nextMessage(time.Now())
	if m == nil || m.kind != "RunnerJobRequest" || l.ru.job == nil {
		return nil, nil
	}
	l.session.drop(func(other *message) bool { return other == m })
	l.job = l.ru.job
	return l.job, nil
}

// Take takes the job that Next has returned.
func (l *Listener) Take() error {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	switch {
	case l.ru.removed():
		return ErrRemoved
	case l.job == nil || l.ru.job != l.job:
		l.sim.remove(l.ru, "came too late for its job")
		return ErrLate
	}
	l.sim.start(l.job)
	return nil
}

// Work runs the job that was taken for some time, and renews its lock meanwhile.
func (l *Listener) Work(ctx context.Context, d time.Duration) error {
	end := time.NewTimer(d)
	defer end.Stop()
	renew := time.NewTicker(renewEvery)
	defer renew.Stop()
	for {
		if err := l.lookAfterJob(); err != nil {
			return err
		}
		select {
		case <-end.C:
			return nil
		case <-renew.C:
		case <-l.ru.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-l.sim.ctx.Done():
			return ErrClosed
		}
	}
}

func (l *Listener) lookAfterJob() error {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	if l.job.done() || l.ru.removed() || l.ru.session != l.session {
		return ErrOver
	}
	if slices.ContainsFunc(l.session.queue, func(m *message) bool { return m.kind == "JobCancellation" }) {
		return ErrCancelled
	}
	l.sim.renew(l.job)
	return nil
}

// Finish ends the job with a result: succeeded, failed or canceled.
func (l *Listener) Finish(result string) error {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	if l.job.done() {
		return ErrOver
	}
	l.sim.report(l.job, result)
	return nil
}

// Close ends the session.
func (l *Listener) Close() { l.leave(true) }

// Abandon says nothing more, as a runner whose machine is off. GitHub finds out.
func (l *Listener) Abandon() { l.leave(false) }

func (l *Listener) leave(politely bool) {
	l.sim.mu.Lock()
	defer l.sim.mu.Unlock()
	l.ru.polls--
	l.ru.lastSeen = time.Now()
	if politely && !l.ru.removed() && l.ru.session == l.session {
		l.sim.closeSession(l.ru)
	}
}

// Register registers a runner that is none of the App's, such as another controller's or
// one set up by hand, and returns its JIT config. The scope is an organization, or
// owner/name.
func (s *Sim) Register(at, name string, labels ...string) (secret.Text, error) {
	key, err := s.keys.take()
	if err != nil {
		return secret.Text{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	where := scope{owner: s.accounts[strings.ToLower(at)]}
	if repo := s.repos[strings.ToLower(at)]; repo != nil {
		where = scope{owner: repo.owner, repo: repo}
	}
	if where.owner == nil {
		return secret.Text{}, fmt.Errorf("register a runner at %s: %w", at, ErrNotFound)
	}
	r := s.newRunner(jitRequest{Name: name, Labels: labels}, where, &runnerGroup{id: 1, name: "Default"}, key, time.Now())
	s.change()
	return secret.New(s.encodedJIT(s.runnerBase(nil), r)), nil
}

// RemoveRunner removes a registration as GitHub does by itself, of an idle runner for
// instance (actions/runner#4726). It refuses while the runner has a job.
func (s *Sim) RemoveRunner(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.runners, func(r *runner) bool { return r.id == id && !r.removed() })
	if i < 0 {
		return fmt.Errorf("remove runner %d: %w", id, ErrNotFound)
	}
	if s.runners[i].job != nil {
		return fmt.Errorf("remove runner %d: it has a job", id)
	}
	s.remove(s.runners[i], "removed by GitHub")
	s.runners[i].signal()
	return nil
}
