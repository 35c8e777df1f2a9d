// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"slices"
	"strconv"
	"time"
)

// opens reports whether a token reads the session's queue.
func (ses *setSession) opens(token string) bool {
	return ses != nil && token == ses.token && time.Now().Before(ses.tokenExpires)
}

// openSetSession opens the one session of a scale set. One that polls, or polled a moment
// ago, is in the way of another.
func (s *Sim) openSetSession(w http.ResponseWriter, r *http.Request, set *scaleSet) {
	in := readJSON[struct{ OwnerName string }](r)
	if old := set.session; old != nil && (old.polls > 0 || time.Since(old.lastSeen) < s.timing.SessionTimeout) {
		setError(w, http.StatusConflict, "RunnerScaleSetSessionConflictException", "The runner scale set "+set.name+" already has an active session for owner "+old.owner+".")
		return
	}
	set.session = &setSession{id: newGUID(), owner: in.OwnerName, token: newToken("queue_"), tokenExpires: time.Now().Add(s.timing.QueueToken), lastSeen: time.Now()}
	s.change()
	reply(w, http.StatusOK, s.setSessionView(set, s.base(r)))
}

func (s *Sim) setSessionView(set *scaleSet, base string) object {
	return object{
		"sessionId": set.session.id, "ownerName": set.session.owner, "runnerScaleSet": s.setView(set), "statistics": s.statisticsView(set),
		"messageQueueUrl":         base + setsPath + "/queue/" + strconv.FormatInt(set.id, 10) + "/" + set.session.id,
		"messageQueueAccessToken": set.session.token,
	}
}

// ownSession reports whether the path names the set's session.
func ownSession(w http.ResponseWriter, r *http.Request, set *scaleSet) bool {
	if set.session == nil || set.session.id != r.PathValue("session") {
		setError(w, http.StatusNotFound, "RunnerScaleSetSessionNotFoundException", "The session has expired.")
		return false
	}
	return true
}

func (s *Sim) refreshSetSession(w http.ResponseWriter, r *http.Request, set *scaleSet) {
	if ownSession(w, r, set) {
		set.session.token, set.session.tokenExpires = newToken("queue_"), time.Now().Add(s.timing.QueueToken)
		reply(w, http.StatusOK, s.setSessionView(set, s.base(r)))
	}
}

func (s *Sim) closeSetSession(w http.ResponseWriter, r *http.Request, set *scaleSet) {
	if ownSession(w, r, set) {
		set.session = nil
		set.signal()
		s.change()
		w.WriteHeader(http.StatusNoContent)
	}
}

// pollSet is the long poll of a scale set's queue.
func (s *Sim) pollSet(w http.ResponseWriter, r *http.Request) {
	set, ses, seq, ok := s.beginSetPoll(w, r)
	if !ok {
		return
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		ses.polls--
		ses.lastSeen = time.Now()
	}()
	s.longPoll(w, r, set.wake, func() bool { return s.stepSetPoll(w, r, set, ses, seq) })
}

func (s *Sim) beginSetPoll(w http.ResponseWriter, r *http.Request) (*scaleSet, *setSession, int, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setByID(pathID(r))
	capacity, err := strconv.Atoi(r.Header.Get("X-ScaleSetMaxCapacity"))
	switch {
	case set == nil:
		setError(w, http.StatusNotFound, "RunnerScaleSetNotFoundException", "No runner scale set has this id.")
		return nil, nil, 0, false
	case !ownSession(w, r, set):
		return nil, nil, 0, false
	case !set.session.opens(bearer(r)):
		setError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token of the queue has expired.")
		return nil, nil, 0, false
	case err != nil || capacity < 0:
		setError(w, http.StatusBadRequest, "ArgumentException", "X-ScaleSetMaxCapacity is not a number.")
		return nil, nil, 0, false
	}
	ses := set.session
	ses.polls++
	ses.pollSeq++
	ses.lastSeen = time.Now()
	if set.capacity != capacity {
		set.capacity = capacity
		s.change()
	}
	set.signal() // an older poll leaves
	s.assign()
	return set, ses, ses.pollSeq, true
}

// stepSetPoll looks once for something to answer a poll with: the first message after the
// one that the caller has seen. It is sent again until it is deleted.
func (s *Sim) stepSetPoll(w http.ResponseWriter, r *http.Request, set *scaleSet, ses *setSession, seq int) (done bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Context().Err() != nil:
		set.signal() // the wake was for the poll that follows this one
		return true
	case ses.pollSeq != seq:
		set.signal()
		w.WriteHeader(http.StatusAccepted)
		return true
	case !ownSession(w, r, set):
		return true
	case !ses.opens(bearer(r)):
		setError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token of the queue has expired.")
		return true
	}
	last, _ := strconv.ParseInt(r.URL.Query().Get("lastMessageId"), 10, 64) // 0: from the beginning
	i := slices.IndexFunc(set.queue, func(m *setMessage) bool { return m.id > last })
	if i < 0 {
		return false
	}
	m := set.queue[i]
	m.sent = true
	set.sent++
	s.change()
	reply(w, http.StatusOK, object{
		"messageId": m.id, "messageType": "RunnerScaleSetJobMessages", "body": string(marshal(m.news)), "statistics": s.statisticsView(set),
	})
	return true
}

func (s *Sim) deleteSetMessage(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setByID(pathID(r))
	switch {
	case set == nil:
		setError(w, http.StatusNotFound, "RunnerScaleSetNotFoundException", "No runner scale set has this id.")
		return
	case !ownSession(w, r, set):
		return
	case !set.session.opens(bearer(r)):
		setError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token of the queue has expired.")
		return
	}
	id, _ := strconv.ParseInt(r.PathValue("message"), 10, 64) // what is no number deletes nothing
	set.queue = slices.DeleteFunc(set.queue, func(m *setMessage) bool { return m.id == id })
	s.change()
	w.WriteHeader(http.StatusNoContent)
}
