// SPDX-License-Identifier: MIT

package guest

import (
	"encoding/json"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/trust"
)

// FuzzJobStarted gives the hook any event: by the default policy nothing is allowed but the
// repository's own code in a repository that is not said to be public.
func FuzzJobStarted(f *testing.F) {
	f.Fuzz(func(t *testing.T, name, event string) {
		path := filepath.Join(t.TempDir(), "event.json")
		if err := os.WriteFile(path, []byte(event), 0o600); err != nil {
			t.Fatal(err)
		}
		env := map[string]string{"GITHUB_REPOSITORY": "octo/demo", "GITHUB_EVENT_NAME": name, "GITHUB_EVENT_PATH": path, "GITHUB_RUN_ID": "7"}
		job := readJob(func(key string) string { return env[key] })
		why := (&jobHook{}).judge(job)
		of := "pull_request"
		switch {
		case why != "":
			return
		case !json.Valid([]byte(event)), job.Unread != "", job.Visibility == trust.Public, !strings.EqualFold(job.Head, "octo/demo"):
			t.Errorf("allowed: %+v", job)
		case strings.HasPrefix(name, of) && !strings.Contains(strings.ToLower(event), "full_name"):
			t.Errorf("allowed a pull request without a head: %+v", job)
		}
	})
}

// FuzzJobAsk gives the guest program any question: one that it does not understand decides
// nothing, and what it tells of a job the host believes.
func FuzzJobAsk(f *testing.F) {
	f.Fuzz(func(t *testing.T, question []byte) {
		here, there := net.Pipe()
		written := make(chan struct{})
		go func() {
			defer close(written)
			here.Write(question) //nolint:errcheck // the other side may hang up
			here.Close()
		}()
		defer func() { there.Close(); <-written }()
		a := fuzzAgent(t)
		h := &jobHook{log: slog.New(slog.DiscardHandler)}
		asked := false
		refused, done := h.answer(there, func(job jobAsk, why string) {
			asked = true
			if why == "" && (job.Visibility == trust.Public || job.Unread != "" || !strings.EqualFold(job.Head, job.Repository)) {
				t.Errorf("allowed: %+v", job)
			}
			a.told(job, why)
		})
		if done != asked || refused && !asked {
			t.Errorf("asked %t, done %t, refused %t", asked, done, refused)
		}
		s, _ := a.Status()
		s.HasConfig, s.Phase = true, PhaseBusy
		wire, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeStatus(wire); err != nil {
			t.Errorf("the host does not believe %s: %v", wire, err)
		}
	})
}
