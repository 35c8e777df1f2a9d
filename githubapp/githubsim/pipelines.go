// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// serviceDefinitions tells clients of the older service where its parts are.
const serviceDefinitions = `134e239e-2df3-4794-a6f6-24f1f19ec8dc sessions /_apis/{area}/pools/{poolId}/{resource}/{sessionId}
c3a054f6-7a8a-49c0-944e-3a8e5d7adfd7 messages /_apis/{area}/pools/{poolId}/{resource}/{messageId}
fc825784-c92a-4299-9221-998a02d1b54f jobrequests /_apis/{area}/pools/{poolId}/{resource}/{requestId}
8893bc5b-35b2-4be7-83cb-99e683551db4 records /{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/timelines/{timelineId}/{resource}/{recordId}
858983e4-19bd-4c5e-864c-507b59b58b12 feed /{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/timelines/{timelineId}/records/{recordId}/{resource}
46f5667d-263a-4684-91b1-dff7fdcf64e2 logs /{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/{resource}/{logId}
557624af-b29e-4c20-8ab0-0399d2204f3f events /{scopeIdentifier}/_apis/{area}/hubs/{hubName}/plans/{planId}/{resource}`

// pipelineRoutes is the older service (v1).
func (s *Sim) pipelineRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+pipelinesPath+"/_apis/connectionData", s.connectionData)
	pool := pipelinesPath + "/_apis/distributedtask/pools/{pool}"
	mux.HandleFunc("POST "+pool+"/sessions", s.asRunner(s.postSession))
	mux.HandleFunc("DELETE "+pool+"/sessions/{session}", s.asRunner(func(w http.ResponseWriter, _ *http.Request, ru *runner) {
		s.closeSession(ru)
		reply(w, http.StatusOK, nil)
	}))
	mux.HandleFunc("GET "+pool+"/messages", func(w http.ResponseWriter, r *http.Request) { s.poll(w, r, false) })
	mux.HandleFunc("DELETE "+pool+"/messages/{message}", s.asRunner(s.deleteMessage))
	mux.HandleFunc("PATCH "+pool+"/jobrequests/{request}", s.asRunner(s.patchJobRequest))
	plan := pipelinesPath + "/{scope}/_apis/distributedtask/hubs/{hub}/plans/{plan}"
	mux.HandleFunc("PATCH "+plan+"/timelines/{timeline}/records", s.asJob(s.patchRecords))
	mux.HandleFunc("POST "+plan+"/timelines/{timeline}/records/{record}/feed", s.asJob(func(j *job, _ *http.Request, body []byte) any {
		j.feed = append(j.feed, decodeLoose[struct{ Value []string }](body).Value...)
		return nil
	}))
	mux.HandleFunc("POST "+plan+"/logs", s.asJob(func(j *job, _ *http.Request, body []byte) any {
		j.logSeq++
		return object{"id": j.logSeq, "path": decodeLoose[struct{ Path string }](body).Path, "createdOn": stamp(s.clock.now()), "lastChangedOn": stamp(s.clock.now())}
	}))
	mux.HandleFunc("POST "+plan+"/logs/{log}", s.asJob(func(j *job, r *http.Request, body []byte) any {
		j.log(r.PathValue("log")).Write(body)
		return nil
	}))
	mux.HandleFunc("POST "+plan+"/events", s.asJob(func(j *job, _ *http.Request, body []byte) any {
		if e := decodeLoose[struct{ Name, JobID, Result string }](body); e.Name == "JobCompleted" && strings.EqualFold(e.JobID, j.guid) {
			s.report(j, e.Result)
		}
		return nil
	}))
}

// report completes a job with the result that its runner gives.
func (s *Sim) report(j *job, result string) {
	conclusion, known := map[string]string{
		"succeeded": "success", "succeededwithissues": "success", "failed": "failure", "abandoned": "failure",
		"canceled": "cancelled", "cancelled": "cancelled", "skipped": "skipped",
	}[strings.ToLower(result)]
	if !known {
		conclusion = "failure"
	}
	s.start(j) // a runner that never said so has started it all the same
	s.finish(j, conclusion, "")
}

// connectionData refuses who has no token yet, which makes clients fetch one.
func (s *Sim) connectionData(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	_, bad := s.callingRunner(r)
	j := s.jobTokens[bearer(r)]
	s.mu.Unlock()
	if bad && j == nil {
		serviceError(w, http.StatusUnauthorized, "VssUnauthorizedException", "Requires authentication")
		return
	}
	defs := []object{}
	for line := range strings.Lines(serviceDefinitions) {
		f := strings.Fields(line)
		defs = append(defs, object{
			"serviceType": "distributedtask", "identifier": f[0], "displayName": f[1], "relativePath": f[2], "relativeToSetting": "fullyQualified",
			"serviceOwner": "00000000-0000-0000-0000-000000000000", "resourceVersion": 1, "minVersion": "1.0", "maxVersion": "12.0",
		})
	}
	reply(w, http.StatusOK, object{"instanceId": newGUID(), "locationServiceData": object{"serviceOwner": newGUID(), "serviceDefinitions": defs}})
}

// postSession opens a session, or sends the runner on to the broker.
func (s *Sim) postSession(w http.ResponseWriter, r *http.Request, ru *runner) {
	in := readJSON[sessionRequest](r)
	if s.opt.Flow == FlowMigrate {
		body := sessionBody(ru, in, newGUID())
		body["brokerMigrationMessage"] = object{"brokerBaseUrl": s.runnerBase(r) + brokerPath}
		reply(w, http.StatusOK, body)
		return
	}
	ses := s.openSession(ru, in, false)
	if ses == nil {
		serviceError(w, http.StatusConflict, "TaskAgentSessionConflictException", "The runner "+ru.name+" already has an active session.")
		return
	}
	key, err := ses.encryptKey(ru)
	if err != nil {
		serviceError(w, http.StatusInternalServerError, "CryptographicException", err.Error())
		return
	}
	body := sessionBody(ru, in, ses.id)
	body["encryptionKey"] = key
	reply(w, http.StatusOK, body)
}

// deleteMessage takes a message off the queue. To delete a job's message is to take the job.
func (s *Sim) deleteMessage(w http.ResponseWriter, r *http.Request, ru *runner) {
	id, _ := strconv.ParseInt(r.PathValue("message"), 10, 64)
	if ru.session == nil || ru.session.id != r.URL.Query().Get("sessionId") {
		sessionGone(w, false)
		return
	}
	i := slices.IndexFunc(ru.session.queue, func(m *message) bool { return m.id == id })
	if i < 0 {
		serviceError(w, http.StatusNotFound, "TaskAgentMessageNotFoundException", "The message was not found.")
		return
	}
	m := ru.session.queue[i]
	ru.session.queue = slices.Delete(ru.session.queue, i, i+1)
	if m.kind == "PipelineAgentJobRequest" && ru.job != nil {
		s.start(ru.job)
	}
	reply(w, http.StatusOK, nil)
}

// patchJobRequest renews the lock of a job.
func (s *Sim) patchJobRequest(w http.ResponseWriter, r *http.Request, ru *runner) {
	if ru.job == nil || r.PathValue("request") != strconv.FormatInt(ru.job.requestID, 10) {
		serviceError(w, http.StatusNotFound, "TaskAgentJobNotFoundException", "The job was not found.")
		return
	}
	s.start(ru.job)
	s.renew(ru.job)
	reply(w, http.StatusOK, object{"requestId": ru.job.requestID, "lockedUntil": s.clock.now().Add(s.timing.Lease).UTC().Format(time.RFC3339)})
}

type timelineRecord struct {
	ID, Type, Name, State string
	Result                *string
	StartTime             string
	FinishTime            *string
	Order                 int
	Log                   *struct{ ID int }
}

// patchRecords takes over the state of the job's steps.
func (s *Sim) patchRecords(j *job, _ *http.Request, body []byte) any {
	for _, rec := range decodeLoose[struct{ Value []timelineRecord }](body).Value {
		if rec.Type == "Job" {
			if rec.Log != nil {
				j.jobLog = strconv.Itoa(rec.Log.ID)
			}
			continue
		}
		j.setStep(rec.ID, JobStep{
			Number: rec.Order, Name: rec.Name, Status: stepStatus(rec.State), Conclusion: stepConclusion(deref(rec.Result)),
			StartedAt: parseTime(rec.StartTime), CompletedAt: parseTime(deref(rec.FinishTime)),
		})
	}
	s.change()
	return object{"count": 0, "value": []any{}}
}

// setStep takes over a step, and mends what the rest of the Sim relies on.
func (j *job) setStep(id string, st JobStep) {
	if st.Status != "queued" && st.StartedAt.IsZero() {
		st.StartedAt = j.startedAt
	}
	if st.Status == "completed" {
		st.Conclusion = orString(st.Conclusion, "success")
		if st.CompletedAt.Before(st.StartedAt) {
			st.CompletedAt = st.StartedAt
		}
	} else {
		st.Conclusion = ""
	}
	j.steps[id] = &st
}

func stepStatus(state string) string {
	switch strings.ToLower(state) {
	case "completed":
		return "completed"
	case "inprogress", "in_progress":
		return "in_progress"
	default:
		return "queued"
	}
}

func stepConclusion(result string) string {
	switch strings.ToLower(result) {
	case "":
		return ""
	case "succeeded", "succeededwithissues", "success":
		return "success"
	case "canceled", "cancelled":
		return "cancelled"
	case "skipped":
		return "skipped"
	default:
		return "failure"
	}
}

func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}
