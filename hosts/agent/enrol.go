// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// enrol trades the enrolment token for this host's identity. The credential is
// already kept, so a repetition after a lost answer is the same request.
func (a *Agent) enrol(ctx context.Context) error {
	if a.cfg.EnrolmentToken.Empty() {
		return errors.New("this host has not enrolled yet and enrolment_token is missing: make one with `minifleet host token` and set enrolment_token_file to its file")
	}
	token, pin, err := protocol.ParseEnrolment(a.cfg.EnrolmentToken)
	if err != nil {
		return err
	}
	if a.client, err = newClient(a.cfg, pin); err != nil {
		return err
	}
	ask := protocol.Enrol{Token: token.Reveal(), CredentialHash: a.credential.Hash(), Name: a.cfg.Name, Machine: a.machine}
	pause := backoff{first: 200 * time.Millisecond, most: 30 * time.Second}
	trouble := outage{log: a.log, what: "enrol"}
	for {
		got, err := a.client.enrol(ctx, ask)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case codeOf(err) == protocol.CodeToken:
			return fmt.Errorf("enrol: %w: make a new enrolment token at the controller, for this name (%s)", err, a.cfg.Name)
		case codeOf(err) == protocol.CodeBadRequest, codeOf(err) == protocol.CodeOtherMachine:
			return fmt.Errorf("enrol: %w", err)
		}
		if err == nil {
			crashpoint.Reached(crashpoint.EnrolAnswered)
			a.identity = identity{Host: got.Host, Name: got.Name, Site: got.Site, Pin: pin}
			if err := a.state.saveIdentity(a.identity); err != nil {
				return fmt.Errorf("identity: %w", err)
			}
			crashpoint.Reached(crashpoint.IdentityWritten)
			a.log.Info("enrolled", slog.String("host", got.Host), slog.String("name", got.Name), slog.String("site", got.Site))
			return nil
		}
		trouble.failed(err)
		if !sleep(ctx, pause.next()) {
			return context.Cause(ctx)
		}
	}
}

// final reports whether an error means that this agent must not act any more.
func final(err error) bool {
	switch codeOf(err) {
	case protocol.CodeSuperseded, protocol.CodeOtherMachine:
		return true
	default:
		return false
	}
}

// explainFinal says what to do about an error that is final.
func explainFinal(err error) error {
	if codeOf(err) == protocol.CodeOtherMachine {
		return fmt.Errorf("%w: the state folder was copied: delete the copy and enrol this machine as a host of its own", err)
	}
	return fmt.Errorf("%w: another agent has taken over this host: one of the two must stay off", err)
}

// greet opens this agent's instance at the controller. Until it is welcome it tends
// the VMs that it adopted and begins none.
func (a *Agent) greet(ctx context.Context) error {
	pause := backoff{first: 200 * time.Millisecond, most: 15 * time.Second}
	trouble := outage{log: a.log, what: "hello"}
	for {
		w, err := a.client.hello(ctx, a.credential, protocol.Hello{Instance: a.instance, Machine: a.machine, Facts: a.facts()})
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case final(err):
			return explainFinal(err)
		case codeOf(err) == protocol.CodeCredential:
			return fmt.Errorf("hello: %w: this host was removed or revoked at the controller; to bring it back, move %s, %s and %s away and enrol it anew",
				err, fileCredential, fileIdentity, fileController)
		case err == nil:
			err = a.checkSite(w.Site, w.Epoch)
		}
		if err == nil {
			crashpoint.Reached(crashpoint.HelloAnswered)
			a.mu.Lock()
			a.welcome = w
			a.mu.Unlock()
			a.peers.welcome(w)
			a.clock.exchanged()
			a.log.Info("connected to the controller", slog.String("host", w.Host), slog.String("name", w.Name), slog.Int64("epoch", w.Epoch))
			return nil
		}
		trouble.failed(err)
		if !sleep(ctx, pause.next()) {
			return context.Cause(ctx)
		}
	}
}

// checkSite refuses a controller that is not ours, or one that speaks from the past.
func (a *Agent) checkSite(site string, epoch int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case site != a.identity.Site:
		return fmt.Errorf("the controller is of site %.60q and this host of %q: nothing it says is obeyed; set controller to the right one, or enrol this host anew", site, a.identity.Site)
	case a.obeyed.Site == site && a.obeyed.Host == a.identity.Host && epoch < a.obeyed.Epoch:
		return fmt.Errorf("the controller speaks from epoch %d and this host has obeyed epoch %d: it was restored from an old copy; raise its epoch", epoch, a.obeyed.Epoch)
	default:
		return nil
	}
}
