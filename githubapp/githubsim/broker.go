// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"strings"
	"time"
)

// brokerRoutes is the newer service (v2): broker and run service.
func (s *Sim) brokerRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+brokerPath+"/session", s.asRunner(s.postBrokerSession))
	mux.HandleFunc("DELETE "+brokerPath+"/session", s.asRunner(func(w http.ResponseWriter, _ *http.Request, ru *runner) {
		s.closeSession(ru)
		reply(w, http.StatusOK, nil)
	}))
	mux.HandleFunc("GET "+brokerPath+"/message", func(w http.ResponseWriter, r *http.Request) { s.poll(w, r, true) })
	mux.HandleFunc("POST "+brokerPath+"/acknowledge", s.asRunner(s.acknowledge))
	mux.HandleFunc("POST "+runPath+"/acquirejob", s.asRunner(s.acquireJob))
	mux.HandleFunc("POST "+runPath+"/renewjob", s.asJob(func(j *job, _ *http.Request, _ []byte) any {
		s.renew(j)
		return object{"lockedUntil": s.clock.now().Add(s.timing.Lease).UTC().Format(time.RFC3339)}
	}))
	mux.HandleFunc("POST "+runPath+"/completejob", s.asJob(s.completeJob))
}

func (s *Sim) postBrokerSession(w http.ResponseWriter, r *http.Request, ru *runner) {
	in := readJSON[sessionRequest](r)
	ses := s.openSession(ru, in, true)
	if ses == nil {
		brokerError(w, http.StatusConflict, "RunnerSessionConflict", "The runner "+ru.name+" already has an active session.")
		return
	}
	reply(w, http.StatusOK, sessionBody(ru, in, ses.id))
}

// acknowledge takes a job request off the queue. The job itself is taken by acquireJob.
func (s *Sim) acknowledge(w http.ResponseWriter, r *http.Request, ru *runner) {
	in := readJSON[struct{ RunnerRequestID string }](r)
	if ru.session == nil || ru.job == nil || ru.job.guid != in.RunnerRequestID {
		brokerError(w, http.StatusNotFound, "AcknowledgeJobNotFound", "The job was not found.")
		return
	}
	ru.session.drop(func(m *message) bool { return m.kind == "RunnerJobRequest" })
	reply(w, http.StatusOK, object{})
}

// acquireJob hands out the job itself. Who comes too late loses its registration
// too, as has been seen of GitHub: the runner listens on for ever.
func (s *Sim) acquireJob(w http.ResponseWriter, r *http.Request, ru *runner) {
	in := readJSON[struct{ JobMessageID string }](r)
	j := ru.job
	if j == nil || j.guid != in.JobMessageID {
		runError(w, http.StatusConflict, "job assignment is invalid: MissingKey")
		s.remove(ru, "came too late for its job")
		return
	}
	if ru.session != nil { // to acquire is to acknowledge
		ru.session.drop(func(m *message) bool { return m.kind == "RunnerJobRequest" })
	}
	s.start(j)
	reply(w, http.StatusOK, s.jobMessage(j, s.runnerBase(r), true))
}

type stepResult struct {
	ExternalID  string `json:"external_id"`
	Number      int    `json:"number"`
	Name        string `json:"name"`
	Status      string `json:"status"`
	Conclusion  string `json:"conclusion"`
	StartedAt   string `json:"started_at"`
	CompletedAt string `json:"completed_at"`
}

func (s *Sim) completeJob(j *job, _ *http.Request, body []byte) any {
	in := decodeLoose[struct {
		JobID, Conclusion string
		StepResults       []stepResult
	}](body)
	if !strings.EqualFold(in.JobID, j.guid) {
		return nil
	}
	s.start(j)
	for _, st := range in.StepResults {
		j.setStep(st.ExternalID, JobStep{
			Number: st.Number, Name: st.Name, Status: stepStatus(st.Status), Conclusion: stepConclusion(st.Conclusion),
			StartedAt: parseTime(st.StartedAt), CompletedAt: parseTime(st.CompletedAt),
		})
	}
	s.report(j, in.Conclusion)
	return nil
}
