// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"slices"
	"strings"
	"time"
)

// generateSetJIT registers a runner of a scale set, with the set's labels and group.
func (s *Sim) generateSetJIT(w http.ResponseWriter, r *http.Request) {
	in := readJSON[struct{ Name, WorkFolder string }](r)
	key, err := s.keys.take()
	if err != nil {
		setError(w, http.StatusInternalServerError, "CryptographicException", err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set, access := s.setByID(pathID(r)), s.setTokens[bearer(r)]
	refuse := func(status int, kind, message string) {
		s.keys.giveBack(key)
		setError(w, status, kind, message)
	}
	switch {
	case time.Now().After(access.expires):
		refuse(http.StatusUnauthorized, "VssUnauthorizedException", "The token is unknown or has expired.")
		return
	case set == nil || set.scope != access.scope:
		refuse(http.StatusNotFound, "RunnerScaleSetNotFoundException", "No runner scale set has this id.")
		return
	case in.Name == "" || len(in.Name) > maxRunnerName:
		refuse(http.StatusBadRequest, "ArgumentException", "A runner's name has 1 to 64 characters.")
		return
	}
	ru, bad := s.addRunner(jitRequest{Name: in.Name, Labels: set.labels, WorkFolder: in.WorkFolder}, set.scope, &runnerGroup{id: set.groupID, name: set.groupName}, key)
	switch {
	case bad != nil && bad.status == http.StatusConflict:
		refuse(http.StatusConflict, "AgentExistsException", "A runner of the name "+in.Name+" exists.")
		return
	case bad != nil:
		for name, values := range bad.header {
			w.Header()[name] = values
		}
		refuse(bad.status, "RateLimitException", "Too many registrations.")
		return
	}
	ru.set = set
	s.change()
	reply(w, http.StatusOK, object{
		"runner": object{"id": ru.id, "name": ru.name, "runnerScaleSetId": set.id}, "encodedJITConfig": s.encodedJIT(s.runnerBase(r), ru),
	})
}

func (s *Sim) agent(w http.ResponseWriter, r *http.Request, at scope) *runner {
	id := pathID(r)
	i := slices.IndexFunc(s.runners, func(ru *runner) bool { return ru.id == id && ru.scope == at && !ru.removed() })
	if i < 0 {
		setError(w, http.StatusNotFound, "AgentNotFoundException", "No runner has this id.")
		return nil
	}
	return s.runners[i]
}

func (r *runner) agentView() object {
	view := object{"id": r.id, "name": r.name}
	if r.set != nil {
		view["runnerScaleSetId"] = r.set.id
	}
	return view
}

func (s *Sim) findAgents(w http.ResponseWriter, r *http.Request, at scope) {
	list := []object{}
	for _, ru := range s.runners {
		if ru.scope == at && !ru.removed() && strings.EqualFold(ru.name, r.URL.Query().Get("agentName")) {
			list = append(list, ru.agentView())
		}
	}
	reply(w, http.StatusOK, object{"count": len(list), "value": list})
}

func (s *Sim) getAgent(w http.ResponseWriter, r *http.Request, at scope) {
	if ru := s.agent(w, r, at); ru != nil {
		reply(w, http.StatusOK, ru.agentView())
	}
}

// deleteAgent knows at once that a runner is busy, unlike the REST API.
func (s *Sim) deleteAgent(w http.ResponseWriter, r *http.Request, at scope) {
	ru := s.agent(w, r, at)
	switch {
	case ru == nil:
		return
	case ru.job != nil:
		setError(w, http.StatusBadRequest, "JobStillRunningException", "The runner runs a job.")
		return
	}
	s.remove(ru, "deleted")
	ru.signal()
	s.assign()
	w.WriteHeader(http.StatusNoContent)
}
