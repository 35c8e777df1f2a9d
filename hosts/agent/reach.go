// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/minifleet/minifleet/hosts/protocol"
)

// Reached is what a look at the controller found.
type Reached struct {
	// Trust says why the controller's certificate is trusted.
	Trust string
	// Enrolled says that this host has an identity, Token that it has at least a token.
	Enrolled, Token bool
	// Date is the controller's clock, to the second; zero if it did not tell.
	Date time.Time
}

// Reach looks whether the controller of cfg can be reached and is to be trusted, as an agent
// would find it. It sends no secret and changes nothing, here or there.
func Reach(ctx context.Context, cfg Config) (Reached, error) {
	var r Reached
	id, enrolled, err := (&state{dir: cfg.StateDir}).identity()
	if err != nil {
		return r, fmt.Errorf("state_dir: %w", err)
	}
	r.Enrolled, r.Token = enrolled, !cfg.EnrolmentToken.Empty()
	pin := id.Pin
	if !enrolled && r.Token {
		if _, pin, err = protocol.ParseEnrolment(cfg.EnrolmentToken); err != nil {
			return r, fmt.Errorf("enrolment_token: %w", err)
		}
	}
	c, err := newClient(cfg.withDefaults(), pin)
	if err != nil {
		return r, err
	}
	defer c.close()
	switch {
	case c.base.Scheme == "http":
		r.Trust = "on this machine, without TLS"
	case pin != "":
		r.Trust = "its certificate is the pinned one"
	case cfg.CAFile != "":
		r.Trust = "its certificate is vouched for by ca_file"
	default:
		r.Trust = "its certificate is vouched for by the system's authorities"
	}
	ctx, cancel := context.WithTimeoutCause(ctx, callTimeout, fmt.Errorf("no answer within %s", callTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(c.base.String(), "/")+protocol.PathDesired, nil)
	if err != nil {
		return r, err
	}
	req.Header.Set("User-Agent", c.agent)
	resp, err := c.http.Do(req)
	if err != nil {
		return r, err
	}
	defer resp.Body.Close()
	r.Date, _ = http.ParseTime(resp.Header.Get("Date")) // without one there is none
	// Without a credential the right answer is a refusal in the protocol's words.
	err = readAnswer(resp, protocol.PathDesired, nil)
	switch refusal, ok := errors.AsType[*refusal](err); {
	case ok && refusal.code == protocol.CodeCredential:
		return r, nil
	case err == nil:
		err = errors.New("it asks for no credential")
	}
	return r, fmt.Errorf("%s answers, but not as a controller's listener for agents does: %w: give the address of agents, not of webhook or admin", c.base.Host, err)
}
