// SPDX-License-Identifier: MIT

package scalesets

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"unicode"

	"github.com/actions/scaleset"

	"github.com/minifleet/minifleet/fleet"
)

// FuzzJob: whatever a message says of a job, what is made of it can be stored and shown,
// and is found again under the same key.
func FuzzJob(f *testing.F) {
	for _, seed := range []string{
		`{"jobId":"1f1ed4c6-0000-4000-8000-000000000001","ownerName":"octo","repositoryName":"demo","jobDisplayName":"build (1)","workflowRunId":7,"requestLabels":["mac-set","M4"],"jobWorkflowRef":"octo/demo/.github/workflows/ci.yml@refs/heads/main","queueTime":"2026-11-22T11:00:00Z","result":"succeeded"}`,
		`{"runnerRequestId":7848922,"ownerName":"octo","repositoryName":"demo","queueTime":"0001-01-01T00:00:00Z","result":"canceled","runnerName":"r","runnerId":4}`,
		`{"jobId":" ","runnerRequestId":0}`,
		`{"jobId":"a\u0000b\u202e","ownerName":"../..","repositoryName":"x","jobDisplayName":"\n","requestLabels":["",  "a\nb"],"workflowRunId":-1,"result":"\u0007"}`,
	} {
		f.Add([]byte(seed))
	}
	s := &set{Sets: &Sets{c: Config{WebURL: "https://github.example"}}, scope: fleet.Scope{Owner: "octo"}, log: slog.New(slog.DiscardHandler)}
	s.id.Store(9)
	bad := func(text string) bool {
		return strings.ContainsFunc(text, unicode.IsControl) || len(text) > 1024 || text != strings.TrimSpace(text)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var m scaleset.JobCompleted
		if json.Unmarshal(body, &m) != nil {
			return
		}
		news := s.news(&scaleset.RunnerScaleSetMessage{JobCompletedMessages: []*scaleset.JobCompleted{&m}})
		if len(news) == 0 {
			if m.RunnerRequestID != 0 {
				t.Error("a job with a request's number is passed over")
			}
			return
		}
		j := news[0].Job
		if !strings.HasPrefix(j.SetKey, "9/") || j.Nameless() || len(j.SetKey) < 3 {
			t.Errorf("key %q", j.SetKey)
		}
		for _, text := range append([]string{j.SetKey, j.Owner, j.Repo, j.Name, j.Workflow, j.RunnerName, j.Conclusion, j.URL}, j.Labels...) {
			if bad(text) {
				t.Errorf("text %q", text)
			}
		}
		if scope, err := fleet.ParseScope(j.Repository()); err != nil || scope.Owner != j.Owner || j.RunID < 0 || j.RunnerID < 0 || j.CreatedAt.Year() < 2000 {
			t.Errorf("job %+v: %v", j, err)
		}
		if len(j.Labels) > 100 {
			t.Errorf("%d labels", len(j.Labels))
		}
	})
}

// FuzzEnvelope: whatever an answer holds, it names a message that can be acknowledged or none.
func FuzzEnvelope(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		if e := envelopeOf(body); e.ID < 0 || e.ID == 0 && e != (envelope{}) {
			t.Errorf("%+v", e)
		}
	})
}
