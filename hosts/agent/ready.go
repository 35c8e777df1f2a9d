// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/archives"
)

// sessionEvery is the pause between two questions for the guest's session.
const sessionEvery = 500 * time.Millisecond

// fetchRunner brings the runner that the pool pins to this host, before there is a VM
// that would wait for it.
func (r *runner) fetchRunner(ctx context.Context, want protocol.RunnerArchive) error {
	if want == (protocol.RunnerArchive{}) || r.agent.archives == nil {
		return nil
	}
	began := time.Now()
	pinned, err := r.agent.archives.Ensure(ctx, archives.Ref{URL: want.URL, SHA256: want.SHA256}, func(p archives.Progress) {
		of := ""
		if p.TotalBytes > 0 {
			of = fmt.Sprintf(" of %d", p.TotalBytes>>20)
		}
		r.showProgress(fmt.Sprintf("the pool's runner: %d%s MiB", p.DoneBytes>>20, of))
	})
	if err != nil {
		return fmt.Errorf("the runner that pool %s pins: %w", r.record.Desire.Pool, err)
	}
	r.pinned, r.fetched = pinned, time.Since(began)
	return nil
}

// unpin lets go of the pinned runner's archive.
func (r *runner) unpin() {
	if r.pinned != nil {
		r.pinned.Release()
		r.pinned = nil
	}
}

// readied is the outcome of what lies between a guest's first answer and a standby.
type readied struct {
	installed        string // the digest of the runner that was put into the guest
	install, session time.Duration
	checks           bool // the guest can check jobs
	err              error
}

// makeReady does that, beside everything else: nothing of it is to be paid when the
// runner is armed.
func (s *service) makeReady(ctx context.Context, o orders, helpers *sync.WaitGroup) {
	s.readies = true
	want := o.desire.Runner
	if want.SHA256 == s.record.Installed || s.agent.archives == nil {
		want = protocol.RunnerArchive{}
	}
	helpers.Go(func() {
		var done readied
		done.err = func() error {
			if want != (protocol.RunnerArchive{}) {
				began := time.Now()
				if err := s.install(ctx, want); err != nil {
					return fmt.Errorf("put the pool's runner into the guest: %w", err)
				}
				done.installed, done.install = want.SHA256, time.Since(began)
			}
			began := time.Now()
			waited, health, err := s.awaitSession(ctx, s.guest)
			done.checks = health.JobHook
			if waited {
				done.session = time.Since(began)
			}
			return err
		}()
		select {
		case <-ctx.Done():
		case s.steps <- done:
		}
	})
}

// install puts the pinned runner into the guest. Its archive is here, unless the pool was
// changed meanwhile or an earlier agent made the VM: then it is fetched now.
func (s *service) install(ctx context.Context, want protocol.RunnerArchive) error {
	s.showStep("putting the pool's runner into the guest")
	archive, err := s.agent.archives.Ensure(ctx, archives.Ref{URL: want.URL, SHA256: want.SHA256}, nil)
	if err != nil {
		return err
	}
	defer archive.Release()
	digest, err := hex.DecodeString(archive.SHA256)
	if err != nil {
		return err
	}
	f, err := archive.Open()
	if err != nil {
		return err
	}
	defer f.Close()
	return s.guest.InstallRunner(ctx, archive.Size, digest, f)
}

// errNoSession is the cause with which the wait for a guest's session ends.
type errNoSession struct{ limit time.Duration }

func (e errNoSession) Error() string {
	return fmt.Sprintf("the guest answers, and the session in which its runner runs was not there within %s: have the image log its user in by itself", e.limit)
}

// awaitSession waits until the guest can start a runner, and reports whether it had to.
func (r *runner) awaitSession(ctx context.Context, g Guest) (waited bool, health guest.Health, err error) {
	limit := r.agent.cfg.BootTimeout
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errNoSession{limit})
	defer cancel()
	for {
		ask, done := context.WithTimeout(ctx, guestCall)
		health, err = g.Health(ask)
		done()
		switch {
		case ctx.Err() != nil:
			return waited, health, context.Cause(ctx)
		case err == nil && health.SessionReady:
			return waited, health, nil
		case err != nil:
			r.log.Debug("the guest does not say whether its session is ready", slog.Any("error", err))
		case !waited:
			r.showStep("waiting for the session in which the runner runs")
		}
		waited = true
		if !sleep(ctx, sessionEvery) {
			return waited, health, context.Cause(ctx)
		}
	}
}

func (r *runner) showStep(text string) {
	r.show(fleet.ObservedBooting, func(v *protocol.RunnerReport) { v.Progress = text })
}

// readied makes the guest a standby, or draws the conclusion from that it cannot be one.
func (s *service) readied(done readied) (ending, bool) {
	if done.err != nil {
		if s.given || errors.Is(done.err, errStopped) {
			return ending{}, false
		}
		return ending{failure: cut(done.err.Error(), protocol.MaxText)}, true
	}
	s.ready, s.checks = true, done.checks
	s.unpin()
	if done.installed != "" {
		s.record.Installed = done.installed
		s.saveRecord()
	}
	s.watch.took.Install, s.watch.took.Session = stepIf(done.install), stepIf(done.session)
	s.showSeen()
	return ending{}, false
}
