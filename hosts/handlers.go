// SPDX-License-Identifier: MIT

package hosts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/crashpoint"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

var (
	hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	idPattern   = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)
	// versionPattern is what guests take for a version of the runner, too.
	versionPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}$`)
)

func (s *Server) enrol(w http.ResponseWriter, r *http.Request) {
	in, ok := decode[protocol.Enrol](w, r, 64<<10)
	if !ok {
		return
	}
	switch {
	case !hashPattern.MatchString(in.CredentialHash):
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, "credential_hash: want a hex SHA-256")
		return
	case !fleet.ValidName(in.Name):
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, fmt.Sprintf("name %.40q: want 1 to 32 lower-case letters, digits and dashes", in.Name))
		return
	case !idPattern.MatchString(in.Machine):
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, "machine: want 1 to 64 letters, digits, dots and dashes")
		return
	case in.Token == "" || len(in.Token) > 200:
		fail(w, http.StatusUnauthorized, protocol.CodeToken, fleet.ErrToken.Error())
		return
	}
	crashpoint.Reached(crashpoint.EnrolReceived)
	h, err := s.c.Store.Enrol(r.Context(), secret.New(in.Token).Hash(), in.CredentialHash, in.Name, in.Machine)
	if err != nil {
		s.failWith(w, r, err)
		return
	}
	crashpoint.Reached(crashpoint.EnrolStored)
	s.c.Log.Info("host enrolled", "host", h.ID, "name", h.Name)
	reply(w, protocol.Enrolled{Host: string(h.ID), Name: h.Name, Site: s.c.Store.Site()})
}

func (s *Server) hello(w http.ResponseWriter, r *http.Request, h fleet.Host) {
	in, ok := decode[protocol.Hello](w, r, protocol.MaxBody)
	if !ok {
		return
	}
	facts, err := factsOf(in.Facts)
	listener, wrong := peerOf(in.Facts)
	err = errors.Join(err, wrong)
	if err == nil && (!idPattern.MatchString(in.Instance) || !idPattern.MatchString(in.Machine)) {
		err = errors.New("instance and machine: want 1 to 64 letters, digits, dots and dashes")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, err.Error())
		return
	}
	if err := s.c.Store.Hello(r.Context(), h.ID, in.Instance, in.Machine, facts, s.c.Live); err != nil {
		s.failWith(w, r, err)
		return
	}
	s.peers.note(h.ID, listener, time.Now())
	crashpoint.Reached(crashpoint.HelloStored)
	s.c.Log.Info("agent speaks for host", "host", h.ID, "name", h.Name, "instance", in.Instance, "version", in.Facts.AgentVersion)
	reply(w, protocol.Welcome{
		Site: s.c.Store.Site(), Epoch: s.c.Store.Epoch(), Host: string(h.ID), Name: h.Name,
		PollSeconds: int(s.c.Poll / time.Second), LeaseSeconds: int(s.c.Lease / time.Second),
		PeerKey: s.peerKey(),
	})
}

// desired answers at once where the agent's revision is not the present one, and
// otherwise holds the call until it is not or the wait is over.
func (s *Server) desired(w http.ResponseWriter, r *http.Request, h fleet.Host) {
	q := r.URL.Query()
	revision, err := strconv.ParseInt(q.Get("revision"), 10, 64)
	if err != nil {
		revision = -1 // unknown: answer at once
	}
	seconds, _ := strconv.Atoi(q.Get("wait"))
	// A host is heard of when its call begins: a quiet one must call twice within its deadline.
	wait := min(time.Duration(max(0, seconds))*time.Second, protocol.MaxWait, s.c.Live/2)
	if !s.heard(w, r, h, q.Get("instance")) {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for over := wait == 0; ; {
		changed := s.c.Store.HostChanged(h.ID)
		d, err := s.c.Store.Desired(r.Context(), h.ID)
		if err != nil {
			s.failWith(w, r, err)
			return
		}
		if d.Revision != revision || over {
			crashpoint.Reached(crashpoint.DesiredRead)
			answer := s.wire(d)
			s.addPeers(&answer, h.ID)
			reply(w, answer)
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			over = true
		case <-r.Context().Done():
			return
		}
	}
}

// heard notes that the host's agent has spoken, or answers and reports false.
func (s *Server) heard(w http.ResponseWriter, r *http.Request, h fleet.Host, instance string) bool {
	if err := checkInstance(instance); err != nil {
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, err.Error())
		return false
	}
	if err := s.c.Store.Heard(r.Context(), h.ID, instance, s.c.Live); err != nil {
		s.failWith(w, r, err)
		return false
	}
	s.peers.heard(h.ID, time.Now())
	return true
}

func checkInstance(instance string) error {
	if !idPattern.MatchString(instance) {
		return errors.New("instance: want 1 to 64 letters, digits, dots and dashes")
	}
	return nil
}

func (s *Server) report(w http.ResponseWriter, r *http.Request, h fleet.Host) {
	in, ok := decode[protocol.Report](w, r, protocol.MaxBody)
	if !ok {
		return
	}
	rep, err := reportOf(in)
	listener, wrong := peerOf(in.Facts)
	if err = errors.Join(err, wrong); err != nil {
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, err.Error())
		return
	}
	crashpoint.Reached(crashpoint.ReportReceived)
	if err := s.c.Store.Report(r.Context(), h.ID, rep, s.c.Live); err != nil {
		s.failWith(w, r, err)
		return
	}
	s.peers.note(h.ID, listener, time.Now())
	s.c.Reported(h.ID)
	crashpoint.Reached(crashpoint.ReportStored)
	w.WriteHeader(http.StatusNoContent)
}

// mint walks the mint flow for a runner of this host. It goes on when the agent
// hangs up: what was begun at GitHub is confirmed in any case.
func (s *Server) mint(w http.ResponseWriter, r *http.Request, h fleet.Host) {
	in, ok := decode[protocol.MintRequest](w, r, 64<<10)
	if !ok {
		return
	}
	id := fleet.RunnerID(chi.URLParam(r, "runner"))
	if !idPattern.MatchString(string(id)) {
		fail(w, http.StatusBadRequest, protocol.CodeBadRequest, fmt.Sprintf("runner %.70q is not an id", id))
		return
	}
	if !s.heard(w, r, h, in.Instance) {
		return
	}
	// The body is read; what follows may take longer than a body may.
	http.NewResponseController(w).SetReadDeadline(time.Time{}) //nolint:errcheck // none was set, then
	ctx, cancel := context.WithTimeoutCause(context.WithoutCancel(r.Context()), 2*time.Minute, errors.New("mint took too long"))
	defer cancel()
	name, config, policy, err := s.Mint(ctx, h.ID, id)
	if err != nil {
		s.c.Log.Info("no config minted", "runner", id, "host", h.ID, "error", err)
		s.failWith(w, r, err)
		return
	}
	s.c.Log.Info("config minted", "runner", id, "host", h.ID, "name", name)
	reply(w, protocol.Minted{Name: name, JITConfig: config.Reveal(), Trust: policy})
}
