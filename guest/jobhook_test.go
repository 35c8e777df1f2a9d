// SPDX-License-Identifier: MIT

package guest_test

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/guest"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/trust"
)

// hooking is a listener that does with its hook what the official one does: it gives it
// the job's own variables and none of the workflow's, and fails the job if it fails.
const hooking = officialBusy + `
export GITHUB_REPOSITORY=octo/demo GITHUB_RUN_ID=7 GITHUB_ACTOR=ann GITHUB_TRIGGERING_ACTOR=ann GITHUB_EVENT_PATH="$PWD/event.json"
export GITHUB_EVENT_NAME="$(cat event)"
if [ -f .env ]; then while IFS= read -r line; do export "$line"; done < .env; fi
if bash -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"; then
  echo steps >> ran
  echo '2026-11-21 20:43:10Z: Job build completed with result: Succeeded'
  exit 100
fi
echo always >> ran # as steps do whose condition is always()
echo '2026-11-21 20:43:10Z: Job build completed with result: Failed'
exit 102
`

func TestJobHook(t *testing.T) {
	t.Parallel()
	const (
		private = `"repository": {"private": true}`
		public  = `"repository": {"private": false, "visibility": "public"}`
		head    = `"pull_request": {"head": {"repo": {"full_name": %q, "fork": true}}}`
	)
	fork, own, gone := fmt.Sprintf(head, "eve/demo"), fmt.Sprintf(head, "octo/demo"), `"pull_request": {"head": {"repo": null}}`
	for name, c := range map[string]struct {
		policy trust.Policy
		event  string
		body   string
		want   string // in the refusal; "" lets it run
	}{
		"its own code":                    {trust.Policy{}, "push", "{" + private + "}", ""},
		"a branch's pull request":         {trust.Policy{}, "pull_request", "{" + private + "," + own + "}", ""},
		"a fork's pull request":           {trust.Policy{}, "pull_request", "{" + private + "," + fork + "}", "the code comes from eve/demo"},
		"a fork's, with the base's code":  {trust.Policy{}, "pull_request_target", "{" + private + "," + fork + "}", "eve/demo"},
		"a fork's, allowed":               {trust.Policy{Forks: true}, "pull_request", "{" + private + "," + fork + "}", ""},
		"a fork that is gone":             {trust.Policy{}, "pull_request", "{" + private + "," + gone + "}", "gone"},
		"a pull request without one":      {trust.Policy{}, "pull_request_review", "{" + private + "}", "gone"},
		"a public repository":             {trust.Policy{}, "push", "{" + public + "}", "octo/demo is public"},
		"a public repository, allowed":    {trust.Policy{Public: true}, "push", "{" + public + "}", ""},
		"an event that names none":        {trust.Policy{}, "schedule", `{"schedule": "0 5 * * *"}`, ""},
		"a denied repository":             {trust.Policy{Deny: []string{"octo/*"}}, "push", "{" + private + "}", "trust.deny has octo/*"},
		"a denied event":                  {trust.Policy{DenyEvents: []string{"workflow_dispatch"}}, "workflow_dispatch", "{" + private + "}", "workflow_dispatch"},
		"an event that cannot be read":    {trust.Policy{}, "push", "{", "could not be read"},
		"one that matters to no rule":     {trust.Policy{Public: true, Forks: true}, "push", "{", ""},
		"its event is none that we know":  {trust.Policy{}, "push", `[]`, "could not be read"},
		"somebody else began a trusted's": {trust.Policy{ForkActors: []string{"eve"}}, "pull_request", "{" + private + "," + fork + "}", "ann, who began the run"},
		"the trusted one's fork, by them": {trust.Policy{ForkActors: []string{"eve", "ann"}}, "pull_request", "{" + private + "," + fork + "}", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, hooking)
			h.policy = &c.policy
			h.file("event", c.event)
			h.file("event.json", c.body)
			h.run(nil)
			s := h.untilPhase(guest.PhaseFinished)
			_, err := os.Stat(filepath.Join(h.dir, "ran"))
			job := s.Runner.Job
			if job.Repository != "octo/demo" || job.Run != 7 || job.AskedAt.IsZero() || job.Unasked {
				t.Errorf("%+v", job)
			}
			if (err == nil) != (c.want == "") || (job.Refused == "") != (c.want == "") || !strings.Contains(job.Refused, c.want) {
				t.Errorf("ran: %v, refused %q", err == nil, job.Refused)
			}
			tail, err := h.client.Tail(h.ctx())
			if err != nil || c.want != "" && (s.Runner.Outcome != guest.OutcomeEnded || !strings.Contains(tail, "::error title=Minifleet::This machine does not run the job: "+job.Refused)) {
				t.Errorf("%s: %v\n%s", s.Runner.Result, err, tail)
			}
		})
	}
}

func (h *host) file(name, text string) {
	h.t.Helper()
	if err := os.WriteFile(filepath.Join(h.dir, name), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
}

// A hook that an image has of its own runs after ours, and only for jobs that are allowed.
func TestJobHookLeavesTheImagesOwn(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		policy  trust.Policy
		file    bool // it stands in the runner's file of variables, not in the environment
		own     string
		want    string
		refused bool
	}{
		"in the environment":         {trust.Policy{}, false, "echo own $GITHUB_REPOSITORY >> ran", "own octo/demo\nsteps\n", false},
		"in the runner's file":       {trust.Policy{}, true, "echo own $GITHUB_REPOSITORY >> ran", "own octo/demo\nsteps\n", false},
		"it fails the job":           {trust.Policy{}, true, "echo own >> ran; false; echo more >> ran", "own\nalways\n", false},
		"not for a job that refused": {trust.Policy{Deny: []string{"octo/demo"}}, true, "echo own >> ran", "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := startGuest(t, hooking)
			h.policy = &c.policy
			h.file("event", "push")
			h.file("event.json", `{"repository": {"private": true}}`)
			h.file("it's own.sh", c.own)
			own := filepath.Join(h.dir, "it's own.sh")
			env := map[string]string{"ACTIONS_RUNNER_HOOK_JOB_STARTED": own}
			if c.file {
				env = nil
				h.file(".env", "A=b\nACTIONS_RUNNER_HOOK_JOB_STARTED="+own+"\nLANG=C.UTF-8\n")
			}
			h.run(env)
			s := h.untilPhase(guest.PhaseFinished)
			ran, _ := os.ReadFile(filepath.Join(h.dir, "ran"))
			if string(ran) != c.want || (s.Runner.Job.Refused != "") != c.refused {
				t.Errorf("ran %q, refused %q", ran, s.Runner.Job.Refused)
			}
			if text, err := os.ReadFile(filepath.Join(h.dir, ".env")); c.file && (err != nil || !strings.HasPrefix(string(text), "A=b\n") || !strings.HasSuffix(string(text), "\nLANG=C.UTF-8\n")) {
				t.Errorf("%q %v", text, err)
			}
		})
	}
}

func TestJobHookThatCannotBeMade(t *testing.T) {
	t.Parallel()
	h := startGuest(t, hooking)
	env := map[string]string{"ACTIONS_RUNNER_HOOK_JOB_STARTED": "/opt/hook.ps1"}
	err := h.client.Run(h.ctx(), secret.New(jit), env, &trust.Policy{})
	if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != http.StatusUnprocessableEntity || !strings.Contains(re.Message, "/opt/hook.ps1") {
		t.Errorf("a hook that cannot be chained: %v", err)
	}
	err = h.client.Run(h.ctx(), secret.New(jit), nil, &trust.Policy{Deny: []string{"no glob"}})
	if re, ok := errors.AsType[*guest.ResponseError](err); !ok || re.Code != http.StatusBadRequest {
		t.Errorf("a policy that is none: %v", err)
	}
	if s, err := h.client.Status(h.ctx(), 0, 0); err != nil || s.HasConfig {
		t.Errorf("%+v, %v", s, err)
	}
}

// A runner that knows no hooks runs its job unchecked, and the guest says so.
func TestJobHookThatIsNotRun(t *testing.T) {
	t.Parallel()
	h := startGuest(t, officialBusy+"exit 100")
	h.policy = &trust.Policy{}
	h.run(nil)
	if s := h.untilPhase(guest.PhaseFinished); !s.Runner.Job.Unasked || s.Runner.Result != guest.ResultSucceeded {
		t.Errorf("%+v", s.Runner)
	}
	without := startGuest(t, officialBusy+"exit 100")
	without.run(nil)
	if s := without.untilPhase(guest.PhaseFinished); s.Runner.Job != (guest.JobHook{}) {
		t.Errorf("%+v", s.Runner)
	}
}
