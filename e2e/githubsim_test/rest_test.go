// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// TestEveryAnswerIsAsDescribed asks for all that the simulator offers and that
// GitHub describes, in every state that changes an answer.
func TestEveryAnswerIsAsDescribed(t *testing.T) {
	t.Parallel()
	s := newSite(t, githubsim.Options{KeyPool: 2})
	if _, err := s.sim.AddInstallation(githubsim.Installation{Account: "someone", User: true, Selected: true, Repositories: []string{"mine"}, Public: []string{"mine"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sim.AddRunnerGroup("octo", "macs", false, "other"); err != nil {
		t.Fatal(err)
	}
	app := func(method, path string, in any, want int) map[string]any {
		return s.do(method, path, s.jwt(nil), in, want)
	}
	inst := func(method, path string, in any, want int) map[string]any {
		return s.do(method, path, s.token, in, want)
	}
	install := fmt.Sprintf("/app/installations/%d", s.install)

	app("GET", "/app", nil, 200)
	s.do("GET", "/app", "", nil, 401)
	app("GET", "/app/installations", nil, 200)
	app("GET", install, nil, 200)
	app("GET", "/app/installations/1", nil, 404)
	app("GET", "/orgs/octo/installation", nil, 200)
	app("GET", "/users/someone/installation", nil, 200)
	app("GET", "/repos/octo/demo/installation", nil, 200)
	app("GET", "/repos/octo/nope/installation", nil, 404)
	app("POST", install+"/access_tokens", map[string]any{"repositories": []string{"demo"}, "permissions": map[string]string{"actions": "read"}}, 201)
	app("POST", install+"/access_tokens", map[string]any{"permissions": map[string]string{"contents": "write"}}, 422)
	app("GET", "/app/hook/config", nil, 200)
	inst("GET", "/installation/repositories?per_page=1", nil, 200)
	inst("GET", "/repos/octo/demo", nil, 200)
	inst("GET", "/repos/octo/nope", nil, 404)
	inst("GET", "/rate_limit", nil, 200)
	s.do("GET", "/meta", "", nil, 200)

	for _, base := range []string{"/orgs/octo", "/repos/octo/demo"} {
		body := map[string]any{"name": "vm-1", "runner_group_id": 1, "labels": []string{"vm"}}
		made := inst("POST", base+"/actions/runners/generate-jitconfig", body, 201)
		inst("POST", base+"/actions/runners/generate-jitconfig", body, 409)
		inst("POST", base+"/actions/runners/generate-jitconfig", map[string]any{"name": "vm-2"}, 422)
		id := made["runner"].(map[string]any)["id"]
		inst("GET", base+"/actions/runners?per_page=100", nil, 200)
		inst("GET", fmt.Sprintf("%s/actions/runners/%.0f", base, id), nil, 200)
		inst("DELETE", fmt.Sprintf("%s/actions/runners/%.0f", base, id), nil, 204)
	}
	inst("GET", "/orgs/octo/actions/runners/downloads", nil, 200)
	inst("GET", "/orgs/octo/actions/runner-groups", nil, 200)
	inst("POST", "/orgs/octo/actions/runner-groups", map[string]any{"name": "more"}, 201)
	s.runs(inst)

	s.delivered()
	deliveries := s.sim.Deliveries()
	app("GET", "/app/hook/deliveries?per_page=2", nil, 200)
	app("GET", "/app/hook/deliveries?status=success", nil, 200)
	app("GET", "/app/hook/deliveries?cursor=nonsense", nil, 422)
	app("GET", fmt.Sprintf("/app/hook/deliveries/%d", deliveries[0].ID), nil, 200)
	app("POST", fmt.Sprintf("/app/hook/deliveries/%d/attempts", deliveries[0].ID), nil, 202)
	for _, kind := range []githubsim.FaultKind{githubsim.DeliveryFailed, githubsim.DeliveryBare, githubsim.DeliveryThrottled, githubsim.DeliverySwallowed} {
		if err := s.sim.Inject(githubsim.Fault{Kind: kind}); err != nil {
			t.Fatal(err)
		}
		s.sim.SendEvent("ping", "", []byte(`{"zen":"Half measures are as bad as nothing at all."}`))
		s.delivered()
		all := s.sim.Deliveries()
		app("GET", fmt.Sprintf("/app/hook/deliveries/%d", all[len(all)-1].ID), nil, 200)
	}
	app("GET", "/app/hook/deliveries?per_page=100", nil, 200)
	if err := s.sim.Suspend(s.install, true); err != nil {
		t.Fatal(err)
	}
	app("GET", install, nil, 200)
	app("GET", "/app/installations", nil, 200)
	app("POST", install+"/access_tokens", nil, 403)
	if err := s.sim.Suspend(s.install, false); err != nil {
		t.Fatal(err)
	}
	if err := s.sim.AddRepositories(s.install, "third"); err != nil {
		t.Fatal(err)
	}
	if err := s.sim.RemoveRepositories(s.install, "third"); err != nil {
		t.Fatal(err)
	}
	app("PATCH", "/app/hook/config", map[string]any{"secret": "new"}, 200)
	app("DELETE", install, nil, 204)
	s.delivered()
	code := s.code()
	s.do("POST", "/app-manifests/"+code+"/conversions", "", nil, 201)
	s.do("POST", "/app-manifests/"+code+"/conversions", "", nil, 404)
	app("GET", "/app", nil, 200)
	s.rec.report(t, s.described(), []string{
		"ping.", "installation.created", "installation.suspend", "installation.unsuspend", "installation.deleted",
		"installation_repositories.added", "installation_repositories.removed", "workflow_job.queued", "workflow_job.waiting",
		"workflow_job.completed", "workflow_run.requested", "workflow_run.completed",
	})
}

// runs asks for a run of a fork with a gated, a skipped and a queued job, in each of its attempts.
func (s *site) runs(inst func(method, path string, in any, want int) map[string]any) {
	s.t.Helper()
	run, err := s.sim.QueueRun(githubsim.Workflow{Repo: "octo/demo", HeadRepo: "stranger/demo", Event: "pull_request", Actor: "stranger", Jobs: []githubsim.JobSpec{
		{Name: "gated", Labels: []string{"vm"}, Gated: true}, {Name: "skipped", Skipped: true}, {Name: "queued", Labels: []string{"nobody-has-this"}},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	base := fmt.Sprintf("/repos/octo/demo/actions/runs/%d", run.ID)
	look := func() {
		inst("GET", "/repos/octo/demo/actions/runs?status=queued", nil, 200)
		inst("GET", "/repos/octo/demo/actions/runs?per_page=1", nil, 200)
		inst("GET", base, nil, 200)
		inst("GET", base+"/jobs?filter=all", nil, 200)
		inst("GET", base+"/attempts/1/jobs", nil, 200)
		for _, id := range s.sim.Runs()[0].JobIDs {
			inst("GET", fmt.Sprintf("/repos/octo/demo/actions/jobs/%d", id), nil, 200)
		}
	}
	look()
	if err := s.sim.Approve(run.JobIDs[0]); err != nil {
		s.t.Fatal(err)
	}
	look()
	inst("POST", base+"/cancel", nil, 202)
	look()
	inst("POST", base+"/rerun-failed-jobs", nil, 201)
	look()
	inst("GET", base+"/attempts/9/jobs", nil, 404)
	inst("POST", base+"/cancel", nil, 202)
	inst("DELETE", base, nil, 204)
	if _, err := s.sim.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{{Name: "later", Labels: []string{"vm"}}}}); err != nil {
		s.t.Fatal(err)
	}
}

// described lists the answers to ask for: every operation that GitHub describes,
// but those that no part of the product calls.
func (s *site) described() []string {
	var out []string
	for path, item := range s.rec.schemas.spec.Paths.Map() {
		for method, op := range item.Operations() {
			switch name := method + " " + path; name {
			case "PATCH /repos/{owner}/{repo}", "DELETE /repos/{owner}/{repo}":
			default:
				for code := range op.Responses.Map() {
					if strings.HasPrefix(code, "2") {
						out = append(out, name+" "+code)
					}
				}
			}
		}
	}
	return out
}

func TestRecorderSeesWhatIsWrong(t *testing.T) {
	rec := newRecorder(loadSchemas(t), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprint(w, `{"total_count":"one","runners":[]}`)
	}))
	for name, body := range map[string]string{
		"workflow_job": `{"action":"queued","workflow_job":{}}`, "nonsense": `{"action":"queued"}`,
	} {
		if _, err := rec.validateEvent(name, []byte(body)); err == nil {
			t.Errorf("%s: no complaint", name)
		}
	}
	s := &site{t: t, rec: rec}
	s.serveOnce(rec, "/orgs/octo/actions/runners")
	if len(rec.problems) != 1 {
		t.Errorf("problems are %v", rec.problems)
	}
}

// code has GitHub's pages make an App and returns the code for its credentials.
func (s *site) code() string {
	s.t.Helper()
	form := url.Values{"manifest": {`{"name":"made","url":"https://example.com","redirect_url":"http://127.0.0.1:1/created","hook_attributes":{"url":"https://example.com/webhook","active":false}}`}}
	req := httptest.NewRequestWithContext(s.t.Context(), http.MethodPost, "/settings/apps", strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	page := httptest.NewRecorder()
	s.sim.Handler().ServeHTTP(page, req)
	back, err := url.Parse(page.Header().Get("Location"))
	if err != nil {
		s.t.Fatal(err)
	}
	return back.Query().Get("code")
}
