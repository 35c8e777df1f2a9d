// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// Pauses between mints.
const (
	refusedAgain  = 2 * time.Minute // after GitHub refused a registration
	mintFirstWait = 500 * time.Millisecond
	mintMostWait  = 30 * time.Second
)

// mintAnswer is the outcome of one mint.
type mintAnswer struct {
	name     string
	config   secret.Text
	policy   *trust.Policy // whose code the pool runs; nil if the controller does not say
	guest    string        // the start of the guest program that was asked before
	revision int64         // of the desired that it was asked under
	err      error
}

// mayMint reports whether it is time to ask for a JIT config.
func (s *service) mayMint(o orders, now time.Time) bool {
	return !s.minting && !s.mintNever && o.revision > s.mintAfter && (!now.Before(s.mintAt) || s.refusedAt != 0 && o.revision > s.refusedAt)
}

// startMint asks for a JIT config beside everything else.
func (s *service) startMint(ctx context.Context, o orders, helpers *sync.WaitGroup) {
	s.minting = true
	helpers.Go(func() {
		// The guest is asked first: it takes one config in its life, and an agent
		// that was restarted may have given it already.
		answer := mintAnswer{revision: o.revision}
		ask, cancel := context.WithTimeout(ctx, guestCall)
		status, err := s.guest.Status(ask, 0, 0)
		cancel()
		switch {
		case err != nil:
			answer.err = fmt.Errorf("ask the guest before a mint: %w", err)
		case status.HasConfig:
			answer.err = guest.ErrHasConfig
		default:
			answer.guest = status.Instance
			crashpoint.Reached(crashpoint.MintAsking)
			answer.name, answer.config, answer.policy, answer.err = s.agent.client.mint(ctx, s.agent.credential, s.agent.instance, s.id)
		}
		s.mints <- answer // there is room: one mint at a time
	})
}

// minted hands the guest its config, or draws the conclusion from not having one.
func (s *service) minted(ctx context.Context, m mintAnswer) (ending, bool) {
	s.minting = false
	if m.err != nil {
		s.notMinted(m)
		return ending{}, false
	}
	crashpoint.Reached(crashpoint.MintAnswered)
	s.agent.clock.exchanged()
	o, _ := s.orders()
	if o.desire.Wanted == protocol.WantGone {
		return ending{}, false // the next step ends the VM, which stays without a secret
	}
	s.given = true
	s.record.Given, s.record.Guest, s.record.Desire, s.record.RunnerName = true, m.guest, o.desire, m.name
	s.saveRecord()
	crashpoint.Reached(crashpoint.ConfigRecorded)
	s.log.Info("handing over a JIT config", slog.String("registration", m.name), slog.String("scope", o.desire.Scope))
	s.show(fleet.ObservedRegistering, func(v *protocol.RunnerReport) { v.HasConfig, v.Scope, v.RunnerName = true, o.desire.Scope, m.name })
	return s.deliver(ctx, m.config, m.policy)
}

// deliver gives the guest its config. When the answer is lost the guest is asked what
// it has; a config that certainly did not arrive is dropped, and another is minted.
func (s *service) deliver(ctx context.Context, config secret.Text, policy *trust.Policy) (ending, bool) {
	call, cancel := context.WithTimeout(ctx, guestCall)
	defer cancel()
	if policy != nil && !s.checks {
		s.log.Warn("the guest cannot check jobs: its program is older than this agent")
		policy = nil
	}
	s.watch.handed = time.Now()
	err := s.guest.Run(call, config, nil, policy)
	if err == nil || errors.Is(err, guest.ErrHasConfig) {
		crashpoint.Reached(crashpoint.ConfigDelivered)
		return ending{}, false
	}
	if refused, ok := errors.AsType[*guest.ResponseError](err); ok && refused.Code/100 == 4 {
		return ending{failure: "the guest did not take the JIT config: " + cut(refused.Error(), 300)}, true
	}
	s.log.Warn("the guest did not confirm the JIT config; it is asked", slog.Any("error", err))
	s.unsure, s.unsureAt = true, time.Now()
	return ending{}, false
}

// makeSure asks a guest whether a config arrived whose delivery was not confirmed.
func (s *service) makeSure(ctx context.Context) {
	if !s.unsure || time.Now().Before(s.unsureAt) {
		return
	}
	ask, cancel := context.WithTimeout(ctx, guestCall)
	defer cancel()
	status, err := s.guest.Status(ask, 0, 0)
	if err != nil {
		s.unsureAt = time.Now().Add(time.Second)
		return
	}
	s.unsure = false
	if !status.HasConfig && !s.forgetful(status) {
		s.notGiven()
		s.mintAt = time.Now().Add(s.mintPause.next())
	}
	s.take(guestNews{status: status})
}

// notGiven notes that the guest holds no config after all.
func (s *service) notGiven() {
	s.given, s.record.Given, s.record.Guest, s.record.RunnerName = false, false, "", ""
	s.saveRecord()
	crashpoint.Reached(crashpoint.ConfigWithdrawn)
}

func (s *service) saveRecord() {
	if err := s.agent.state.saveRecord(s.id, s.record); err != nil {
		// The guest itself remembers, so this is no reason to waste a config.
		s.agent.trouble("state", s.agent.unwritable(err).Error())
	}
}

// notMinted notes when a mint may be tried again.
func (s *service) notMinted(m mintAnswer) {
	now := time.Now()
	s.refusedAt = 0
	switch codeOf(m.err) {
	case protocol.CodeNoGrant, protocol.CodeNoSuchRunner, protocol.CodeWrongHost:
		// Not armed after all: no error, and nothing to ask before the controller
		// says so again.
		s.mintAfter = m.revision
	case protocol.CodeRunnerBusy:
		s.mintNever = true
	case protocol.CodeRefused:
		// The controller takes the grant back, and gives it anew when it makes sense.
		s.mintAt, s.refusedAt = now.Add(max(around(refusedAgain), retryAfter(m.err))), m.revision
	default:
		if errors.Is(m.err, context.Canceled) {
			return
		}
		if errors.Is(m.err, guest.ErrHasConfig) {
			s.given = true
			return
		}
		s.mintAt = now.Add(max(s.mintPause.next(), retryAfter(m.err)+rand.N(time.Second)))
	}
	s.log.Info("no JIT config yet", slog.Any("error", m.err))
}

func retryAfter(err error) time.Duration {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.retryAfter
	}
	return 0
}
