// SPDX-License-Identifier: MIT

package githubsim

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const setsPath = servicePrefix + "scalesets"

// registrationToken is the REST answer with which a client introduces itself to the service.
func (s *Sim) registrationToken(c *call) *answer {
	at, bad := s.scope(c, "write")
	if bad != nil {
		return bad
	}
	token := newToken("A")
	s.setTokens[token] = setAccess{scope: at, expires: c.now.Add(time.Hour)}
	return &answer{status: http.StatusCreated, body: object{"token": token, "expires_at": s.clock.of(c.now).Add(time.Hour).UTC().Format(time.RFC3339)}}
}

// setAccess is what a token of the service lets its bearer manage.
type setAccess struct {
	scope   scope
	expires time.Time
}

// registerClient changes a registration token for the service's own URL and token.
func (s *Sim) registerClient(c *call) *answer {
	kind, token, _ := strings.Cut(c.Header.Get("Authorization"), " ")
	access, known := s.setTokens[token]
	if kind != "RemoteAuth" || !known || c.now.After(access.expires) {
		return fail(http.StatusUnauthorized, "Bad credentials")
	}
	expires := c.now.Add(s.timing.SetToken)
	part := base64.RawURLEncoding.EncodeToString
	jwt := part(marshal(object{"alg": "HS256", "typ": "JWT"})) + "." + part(marshal(object{"exp": s.clock.of(expires).Unix(), "jti": newGUID()})) + "." + part([]byte(newToken("")))
	s.setTokens[jwt] = setAccess{scope: access.scope, expires: expires}
	return ok(object{"url": c.base + setsPath + "/", "token": jwt, "token_schema": "OAuthAccessToken"})
}

func (s *Sim) scaleSetRoutes(mux *http.ServeMux) {
	const sets = setsPath + "/_apis/runtime/runnerscalesets"
	const agents = setsPath + "/_apis/distributedtask/pools/0/agents"
	handle := func(pattern string, serve func(w http.ResponseWriter, r *http.Request, at scope)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			defer s.mu.Unlock()
			access, known := s.setTokens[bearer(r)]
			if !known || time.Now().After(access.expires) {
				setError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token is unknown or has expired.")
				return
			}
			serve(w, r, access.scope)
		})
	}
	onSet := func(pattern string, serve func(w http.ResponseWriter, r *http.Request, set *scaleSet)) {
		handle(pattern, func(w http.ResponseWriter, r *http.Request, at scope) {
			set := s.setByID(pathID(r))
			if set == nil || set.scope != at {
				setError(w, http.StatusNotFound, "RunnerScaleSetNotFoundException", "No runner scale set has this id.")
				return
			}
			serve(w, r, set)
		})
	}
	handle("GET "+setsPath+"/_apis/runtime/runnergroups/", s.findGroups)
	handle("GET "+sets, s.findSets)
	handle("POST "+sets, s.createSet)
	onSet("GET "+sets+"/{id}", func(w http.ResponseWriter, _ *http.Request, set *scaleSet) { reply(w, http.StatusOK, s.setView(set)) })
	onSet("PATCH "+sets+"/{id}", s.updateSet)
	onSet("DELETE "+sets+"/{id}", s.deleteSet)
	onSet("POST "+sets+"/{id}/sessions", s.openSetSession)
	onSet("PATCH "+sets+"/{id}/sessions/{session}", s.refreshSetSession)
	onSet("DELETE "+sets+"/{id}/sessions/{session}", s.closeSetSession)
	onSet("GET "+sets+"/{id}/acquirablejobs", s.acquirable)
	mux.HandleFunc("POST "+sets+"/{id}/acquirejobs", s.acquireSetJobs)
	mux.HandleFunc("POST "+sets+"/{id}/generatejitconfig", s.generateSetJIT)
	mux.HandleFunc("GET "+setsPath+"/queue/{id}/{session}", s.pollSet)
	mux.HandleFunc("DELETE "+setsPath+"/queue/{id}/{session}/{message}", s.deleteSetMessage)
	handle("GET "+agents, s.findAgents)
	handle("GET "+agents+"/{id}", s.getAgent)
	handle("DELETE "+agents+"/{id}", s.deleteAgent)
}

// setError is the service's error: its clients look at the name of the type.
func setError(w http.ResponseWriter, status int, kind, message string) {
	w.Header().Set("ActivityId", newGUID())
	serviceError(w, status, kind, message)
}

func (s *Sim) findGroups(w http.ResponseWriter, r *http.Request, at scope) {
	list := []object{}
	groups := []*runnerGroup{{id: 1, name: "Default", isDefault: true}}
	if at.repo == nil {
		groups = at.owner.groups
	}
	for _, g := range groups {
		if name := r.URL.Query().Get("groupName"); name == "" || strings.EqualFold(name, g.name) {
			list = append(list, object{"id": g.id, "name": g.name, "size": 0, "isDefaultGroup": g.isDefault})
		}
	}
	reply(w, http.StatusOK, object{"count": len(list), "value": list})
}

func (s *Sim) setView(set *scaleSet) object {
	labels := []object{}
	for _, l := range set.labels {
		labels = append(labels, object{"id": 1, "name": l, "type": "System"})
	}
	return object{
		"id": set.id, "name": set.name, "runnerGroupId": set.groupID, "runnerGroupName": set.groupName, "labels": labels,
		"RunnerSetting": object{"disableUpdate": set.disableUpdate, "ephemeral": true}, "createdOn": s.clock.of(set.createdAt).UTC().Format(time.RFC3339),
		"statistics": s.statisticsView(set),
	}
}

func (s *Sim) statisticsView(set *scaleSet) object {
	n := s.setStatistics(set)
	return object{
		"totalAvailableJobs": n.available, "totalAcquiredJobs": n.acquired, "totalAssignedJobs": n.assigned, "totalRunningJobs": n.running,
		"totalRegisteredRunners": n.registered, "totalBusyRunners": n.busy, "totalIdleRunners": n.idle,
	}
}

func (s *Sim) findSets(w http.ResponseWriter, r *http.Request, at scope) {
	list := []object{}
	for _, set := range s.sets {
		group := r.URL.Query().Get("runnerGroupId")
		if set.scope == at && strings.EqualFold(set.name, r.URL.Query().Get("name")) && (group == "" || group == strconv.FormatInt(set.groupID, 10)) {
			list = append(list, s.setView(set))
		}
	}
	reply(w, http.StatusOK, object{"count": len(list), "value": list})
}

type setRequest struct {
	Name          string `json:"name"`
	RunnerGroupID int64  `json:"runnerGroupId"`
	Labels        []struct {
		Name string `json:"name"`
	} `json:"labels"`
	RunnerSetting struct {
		DisableUpdate bool `json:"disableUpdate"`
	} `json:"RunnerSetting"`
}

func (s *Sim) createSet(w http.ResponseWriter, r *http.Request, at scope) {
	in := readJSON[setRequest](r)
	group := &runnerGroup{id: 1, name: "Default"}
	if at.repo == nil {
		group = s.group(at.owner, in.RunnerGroupID)
	}
	switch {
	case in.Name == "" || len(in.Labels) == 0:
		setError(w, http.StatusBadRequest, "ArgumentException", "A scale set needs a name and labels.")
		return
	case group == nil || group.id != in.RunnerGroupID:
		setError(w, http.StatusNotFound, "RunnerGroupNotFoundException", "No runner group has this id.")
		return
	case slices.ContainsFunc(s.sets, func(set *scaleSet) bool {
		return set.scope == at && set.groupID == group.id && strings.EqualFold(set.name, in.Name)
	}):
		setError(w, http.StatusConflict, "RunnerScaleSetExistsException", "A runner scale set of that name exists.")
		return
	}
	set := &scaleSet{
		id: s.newID(), name: in.Name, scope: at, groupID: group.id, groupName: group.name, disableUpdate: in.RunnerSetting.DisableUpdate,
		createdAt: time.Now(), lastMessage: 100, wake: make(chan struct{}, 1),
	}
	for _, l := range in.Labels {
		set.labels = append(set.labels, l.Name)
	}
	s.sets = append(s.sets, set)
	s.change()
	reply(w, http.StatusOK, s.setView(set))
}

func (s *Sim) updateSet(w http.ResponseWriter, r *http.Request, set *scaleSet) {
	in := readJSON[setRequest](r)
	if len(in.Labels) > 0 {
		set.labels = nil
		for _, l := range in.Labels {
			set.labels = append(set.labels, l.Name)
		}
	}
	set.disableUpdate = in.RunnerSetting.DisableUpdate
	s.change()
	reply(w, http.StatusOK, s.setView(set))
}

// deleteSet lets go of a set's jobs: they wait for somebody else.
func (s *Sim) deleteSet(w http.ResponseWriter, _ *http.Request, set *scaleSet) {
	for _, j := range s.jobs {
		if j.set == set && j.status != "in_progress" && !j.done() {
			s.withdraw(j)
			j.set = nil
		}
	}
	s.sets = slices.DeleteFunc(s.sets, func(x *scaleSet) bool { return x == set })
	set.session = nil
	set.signal()
	s.assign()
	s.change()
	w.WriteHeader(http.StatusNoContent)
}

func (s *Sim) acquirable(w http.ResponseWriter, _ *http.Request, set *scaleSet) {
	list := []object{}
	for _, j := range s.jobs {
		if j.set == nil && j.status == "queued" && s.setServes(set, j) {
			list = append(list, object{"runnerRequestId": j.requestID, "messageType": "JobAvailable"})
		}
	}
	reply(w, http.StatusOK, object{"count": len(list), "value": list})
}

// acquireSetJobs gives a set the jobs that it asks for and that nobody else has. It takes
// the token of the queue.
func (s *Sim) acquireSetJobs(w http.ResponseWriter, r *http.Request) {
	wanted := readJSON[[]int64](r)
	s.mu.Lock()
	defer s.mu.Unlock()
	set := s.setByID(pathID(r))
	if set == nil || !set.session.opens(bearer(r)) {
		setError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The token of the queue has expired.")
		return
	}
	taken := []int64{}
	for _, j := range s.jobs {
		if slices.Contains(wanted, j.requestID) && j.set == nil && j.status == "queued" && s.setServes(set, j) {
			s.giveToSet(set, j)
			taken = append(taken, j.requestID)
		}
	}
	reply(w, http.StatusOK, object{"count": len(taken), "value": taken})
}
