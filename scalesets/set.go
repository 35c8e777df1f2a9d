// SPDX-License-Identifier: MIT

package scalesets

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/actions/scaleset"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

// set is the scale set of one pool.
type set struct {
	*Sets
	pool    fleet.Pool
	scope   fleet.Scope
	wire    *wire
	client  *scaleset.Client      // of the loop
	minters chan *scaleset.Client // each makes one call at a time
	id      atomic.Int64          // 0 until it is known
	fresh   atomic.Bool           // GitHub has told of its jobs since the start
	log     *slog.Logger

	// Of the one goroutine that runs it:
	tally    tally
	off      time.Time // since when the books differ from GitHub's count
	compared time.Time // when GitHub was last asked for its count
	odd      oddMessage
}

// tally is what GitHub said last of the number of a set's jobs.
type tally struct{ assigned, running int }

// minting is how many registrations of a pool are made at once.
const minting = 8

func (s *Sets) newSet(p fleet.Pool) (*set, error) {
	one := &set{Sets: s, pool: p, scope: p.Scopes[0], minters: make(chan *scaleset.Client, minting)}
	one.log = s.c.Log.With("pool", p.Name, "scale_set", p.ScaleSet, "scope", one.scope.String())
	one.wire = &wire{
		base:   s.c.Transport,
		signIn: func(ctx context.Context) (secret.Text, error) { return s.c.GitHub.RegistrationToken(ctx, one.scope) },
		observe: func(kind string, status int, took time.Duration) {
			s.c.Observe(Call{Pool: p.Name, Kind: kind, Status: status, Took: took})
		},
	}
	var err error
	if one.client, err = one.newClient(); err != nil {
		return nil, err
	}
	for range minting {
		c, err := one.newClient()
		if err != nil {
			return nil, err
		}
		one.minters <- c
	}
	return one, nil
}

// newClient returns a client of GitHub's library. It makes its calls one at a time.
func (s *set) newClient() (*scaleset.Client, error) {
	return scaleset.NewClientWithPersonalAccessToken(scaleset.NewClientWithPersonalAccessTokenConfig{
		GitHubConfigURL:     s.c.WebURL + "/" + s.scope.String(),
		PersonalAccessToken: "the App signs in",
		SystemInfo:          scaleset.SystemInfo{System: "minifleet", Version: s.c.Version, Subsystem: "controller"},
	}, scaleset.WithRetryableHTTPClint(s.wire.client()))
}

// errTaken means that somebody else reads the queue.
var errTaken = errors.New("another client holds the message session")

// run reads the queue until ctx ends. After any failure it begins anew: what was not
// acknowledged comes again.
func (s *set) run(ctx context.Context) {
	failures, said := 0, ""
	for ctx.Err() == nil {
		began := s.fresh.Load()
		err := s.listen(ctx, func() {
			if said != "" {
				s.log.Info("the scale set's queue is read again")
			}
			failures, said = 0, ""
		})
		if ctx.Err() != nil || err == nil {
			continue
		}
		failures++
		wait := min(s.c.Retry<<min(failures-1, 6), time.Minute)
		wait += time.Duration(rand.Int64N(int64(wait)/4 + 1)) // so that not all come back at once
		var limited *fleet.RateLimited
		switch {
		case errors.As(err, &limited):
			wait = max(wait, time.Until(limited.Until))
		case errors.Is(err, errTaken):
			wait = 30 * s.c.Retry
		}
		if kind := kindOf(err); kind != said {
			s.log.Warn("the scale set's queue is not read; it is tried again", "error", err, "fresh", began)
			said = kind
		}
		pause(ctx, wait)
	}
}

// kindOf tells failures apart, so that each is in the log once.
func kindOf(err error) string {
	var limited *fleet.RateLimited
	var call *callError
	switch {
	case errors.As(err, &limited):
		return "limited"
	case errors.As(err, &call):
		return fmt.Sprintf("%s %d", call.what, call.status)
	default:
		return err.Error()
	}
}

// pause reports whether it was not cut short.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// listen opens a session and reads the queue until something fails.
func (s *set) listen(ctx context.Context, well func()) error {
	kept, err := s.settle(ctx)
	if err != nil {
		return err
	}
	ses, err := s.open(ctx, kept)
	if err != nil {
		return err
	}
	defer s.close(ctx, ses)
	counted := ses.Session().Statistics
	if counted == nil {
		return errors.New("open the message session: GitHub's answer has no statistics")
	}
	if _, err := s.take(ctx, s.message(0, counted)); err != nil {
		return err
	}
	if !s.fresh.Swap(true) {
		s.c.Wake()
	}
	well()
	for last := 0; ctx.Err() == nil; {
		msg, err := s.poll(ctx, ses, last)
		switch {
		case ctx.Err() != nil, errors.Is(err, errCapacity):
			continue
		case err != nil:
			if last, err = s.passOver(ctx, ses, err); err != nil {
				return err
			}
		case msg != nil:
			if err := s.handle(ctx, ses, msg); err != nil {
				return err
			}
			last = msg.MessageID
		}
		if err := s.compare(ctx, msg == nil); err != nil && ctx.Err() == nil {
			s.log.Warn("GitHub's count of the scale set's jobs and the books could not be compared; it is tried again", "error", err)
		}
	}
	return nil
}

// settle finds the scale set at GitHub, or makes it, as the pool is configured.
func (s *set) settle(ctx context.Context) (fleet.ScaleSet, error) {
	group := 1 // the default group, and the only one of a repository
	if name := s.pool.RunnerGroup; s.scope.Repo == "" && name != "" && !strings.EqualFold(name, scaleset.DefaultRunnerGroup) {
		err := s.call(ctx, "find runner group "+name, func(ctx context.Context) error {
			g, err := s.client.GetRunnerGroupByName(ctx, url.QueryEscape(name))
			if err == nil {
				group = g.ID
			}
			return err
		})
		if err != nil {
			return fleet.ScaleSet{}, err
		}
	}
	var found *scaleset.RunnerScaleSet
	err := s.call(ctx, "find the scale set", func(ctx context.Context) (err error) {
		found, err = s.client.GetRunnerScaleSet(ctx, group, url.QueryEscape(s.pool.ScaleSet))
		return err
	})
	if err != nil {
		return fleet.ScaleSet{}, err
	}
	want := &scaleset.RunnerScaleSet{Name: s.pool.ScaleSet, RunnerGroupID: group, RunnerSetting: scaleset.RunnerSetting{DisableUpdate: true}}
	for _, l := range s.pool.LabelNames {
		want.Labels = append(want.Labels, scaleset.Label{Name: l, Type: "System"})
	}
	switch {
	case found == nil:
		err = s.call(ctx, "make the scale set", func(ctx context.Context) (err error) {
			found, err = s.client.CreateRunnerScaleSet(ctx, want)
			return err
		})
		if err != nil {
			return fleet.ScaleSet{}, err
		}
		s.log.Info("scale set made", "id", found.ID, "group", group)
	case !sameSettings(found, want):
		err = s.call(ctx, "change the scale set", func(ctx context.Context) error {
			_, err := s.client.UpdateRunnerScaleSet(ctx, found.ID, want)
			return err
		})
		if err != nil {
			s.log.Warn("the scale set's labels or settings are not as configured, and GitHub does not change them; delete it at GitHub, and it is made anew", "error", err)
		}
	}
	if found.ID <= 0 {
		return fleet.ScaleSet{}, errors.New("find the scale set: GitHub's answer has no id")
	}
	kept, err := s.c.Store.UseScaleSet(ctx, s.pool.Name, s.scope, s.pool.ScaleSet, int64(found.ID))
	if err == nil {
		s.id.Store(int64(found.ID))
	}
	return kept, err
}

func sameSettings(a, b *scaleset.RunnerScaleSet) bool {
	names := func(s *scaleset.RunnerScaleSet) []string {
		var out []string
		for _, l := range s.Labels {
			out = append(out, strings.ToLower(l.Name))
		}
		slices.Sort(out)
		return out
	}
	return a.RunnerSetting == b.RunnerSetting && slices.Equal(names(a), names(b))
}

// open opens the one message session of the set. One that this site left open, because it
// was killed, is closed before.
func (s *set) open(ctx context.Context, kept fleet.ScaleSet) (*scaleset.MessageSessionClient, error) {
	if kept.Session != "" {
		if err := s.end(ctx, kept.ID, kept.Session); err != nil {
			return nil, err
		}
		if err := s.c.Store.KeepSession(ctx, s.pool.Name, ""); err != nil {
			return nil, err
		}
	}
	var ses *scaleset.MessageSessionClient
	// It is seen through when the program stops: a session whose id nobody has is in the way
	// until GitHub ends it.
	through, over := seenThrough(ctx)
	defer over()
	err := s.call(through, "open the message session", func(ctx context.Context) (err error) {
		ses, err = s.client.MessageSessionClient(ctx, int(kept.ID), s.c.Owner, scaleset.WithRetryableHTTPClint(s.wire.client()))
		return err
	})
	if statusOf(err) == statusConflict {
		return nil, fmt.Errorf("%w: let one controller alone use the scale set, or give this pool another: %w", errTaken, err)
	}
	if err != nil {
		return nil, err
	}
	crashpoint.Reached(crashpoint.SetSessionOpened)
	if err := s.c.Store.KeepSession(context.WithoutCancel(ctx), s.pool.Name, ses.Session().SessionID.String()); err != nil {
		s.close(ctx, ses)
		return nil, err
	}
	return ses, nil
}

// closeWithin bounds the end of a session, and what a stop finds of its beginning: a stop
// waits for both.
const closeWithin = 5 * time.Second

// seenThrough returns a context that outlasts another by closeWithin.
func seenThrough(ctx context.Context) (through context.Context, over func()) {
	through, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(closeWithin, func() { cancel(errTimeout) }) })
	return through, func() {
		stop()
		cancel(nil)
	}
}

func (s *set) close(ctx context.Context, ses *scaleset.MessageSessionClient) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeWithin)
	defer cancel()
	err := s.call(ctx, "close the message session", ses.Close)
	if statusOf(err) == statusNotFound {
		err = nil
	}
	if err == nil {
		err = s.c.Store.KeepSession(ctx, s.pool.Name, "")
	}
	if err != nil { // it is tried again before another is opened
		s.log.Debug("message session not closed", "error", err)
	}
}
