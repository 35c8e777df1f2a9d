// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto/subtle"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/coder/websocket"
)

// resultsRoutes takes step states and logs of the newer service.
func (s *Sim) resultsRoutes(mux *http.ServeMux) {
	mux.HandleFunc("POST "+resultsPath+"/twirp/results.services.receiver.Receiver/{method}", s.asJob(s.receive))
	mux.HandleFunc("POST "+resultsPath+"/twirp/github.actions.results.api.v1.WorkflowStepUpdateService/WorkflowStepsUpdate", s.asJob(s.updateSteps))
	mux.HandleFunc("PUT "+blobPath+"/{job}/{log}", s.putBlob)
}

// receive gives out the URLs for logs and takes their metadata.
func (s *Sim) receive(j *job, r *http.Request, body []byte) any {
	method := r.PathValue("method")
	field := map[string]string{
		"GetStepLogsSignedBlobURL": "logs_url", "GetJobLogsSignedBlobURL": "logs_url", "GetStepSummarySignedBlobURL": "summary_url",
	}[method]
	if field == "" {
		return object{"ok": true}
	}
	step := decodeLoose[struct {
		Step string `json:"step_backend_id"`
	}](body).Step
	name := "step-" + step
	switch {
	case field == "summary_url":
		name = "summary-" + step
	case step == "":
		name = "job"
		j.jobLog = name
	}
	return object{
		field:               s.runnerBase(r) + blobPath + "/" + j.guid + "/" + name + "?sig=" + j.blobKey,
		"blob_storage_type": "BLOB_STORAGE_TYPE_AZURE", "soft_size_limit": 1 << 20,
	}
}

// putBlob takes a part of a log. The URL itself is the permission, as with storage accounts.
func (s *Sim) putBlob(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, bodyLimit))
	if err != nil {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.jobs, func(j *job) bool { return j.guid == r.PathValue("job") })
	if i < 0 || subtle.ConstantTimeCompare([]byte(s.jobs[i].blobKey), []byte(r.URL.Query().Get("sig"))) != 1 {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	if name := r.PathValue("log"); !strings.HasPrefix(name, "summary-") {
		s.jobs[i].log(name).Write(body)
	}
	w.WriteHeader(http.StatusCreated)
}

// updateSteps takes over the state of the job's steps. The numbers are the protocol's.
func (s *Sim) updateSteps(j *job, _ *http.Request, body []byte) any {
	statuses := map[int]string{1: "in_progress", 2: "queued", 3: "completed"}
	conclusions := map[int]string{2: "success", 3: "failure", 4: "cancelled", 7: "skipped"}
	type step struct {
		ExternalID  string `json:"external_id"`
		Number      int    `json:"number"`
		Name        string `json:"name"`
		Status      int    `json:"status"`
		Conclusion  int    `json:"conclusion"`
		StartedAt   string `json:"started_at"`
		CompletedAt string `json:"completed_at"`
	}
	for _, st := range decodeLoose[struct {
		Steps []step `json:"steps"`
	}](body).Steps {
		j.setStep(st.ExternalID, JobStep{
			Number: st.Number, Name: st.Name, Status: orString(statuses[st.Status], "queued"), Conclusion: conclusions[st.Conclusion],
			StartedAt: parseTime(st.StartedAt), CompletedAt: parseTime(st.CompletedAt),
		})
	}
	s.change()
	return object{}
}

// serveFeed takes the live lines of a job.
func (s *Sim) serveFeed(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	j := s.jobTokens[bearer(r)]
	refused := j == nil || j.done() || s.closed
	if !refused {
		s.wg.Add(1) // a hijacked connection is nobody else's to wait for
		defer s.wg.Done()
	}
	s.mu.Unlock()
	if refused {
		serviceError(w, http.StatusUnauthorized, "VssUnauthorizedException", "The job's token is unknown or has expired.")
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow() //nolint:errcheck // whatever it was, it is over
	conn.SetReadLimit(bodyLimit)
	for {
		_, body, err := conn.Read(s.ctx)
		if err != nil {
			return
		}
		s.mu.Lock()
		j.feed = append(j.feed, decodeLoose[struct{ Value []string }](body).Value...)
		s.mu.Unlock()
	}
}
