// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func TestGenerateJIT(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true, Flow: githubsim.FlowMigrate})
	c := asInstallation(t, sim, octo)
	jit, _, err := c.Actions.GenerateOrgJITConfig(t.Context(), "octo", &github.GenerateJITConfigRequest{
		Name: "vm-1", RunnerGroupID: 1, Labels: []string{"self-hosted", "macOS"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := jit.GetRunner(); r.GetName() != "vm-1" || r.GetStatus() != "offline" || r.GetBusy() || len(r.Labels) != 2 {
		t.Errorf("runner is %v", r)
	}
	files := filesOf(t, jit.GetEncodedJITConfig())
	var settings map[string]any
	if err := json.Unmarshal(files[".runner"], &settings); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"AgentId": fmt.Sprint(jit.GetRunner().GetID()), "AgentName": "vm-1", "Ephemeral": "True", "DisableUpdate": "True", "PoolId": "1",
		"WorkFolder": "_work", "UseV2Flow": "true", "GitHubUrl": sim.URL() + "/octo",
	}
	for name, v := range want {
		if settings[name] != v {
			t.Errorf("%s is %v, want %v", name, settings[name], v)
		}
	}
	var params map[string][]byte
	if err := json.Unmarshal(files[".credentials_rsaparams"], &params); err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"modulus": 256, "d": 256, "p": 128, "q": 128, "dp": 128, "dq": 128, "inverseQ": 128, "exponent": 3} {
		if len(params[name]) != size {
			t.Errorf("%s has %d bytes, want %d", name, len(params[name]), size)
		}
	}
	if len(files[".credentials"]) == 0 {
		t.Error("no .credentials")
	}
}

func TestGenerateJITRefusals(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	group, err := sim.AddRunnerGroup("octo", "macs", false)
	if err != nil {
		t.Fatal(err)
	}
	token := tokenFor(t, sim, octo, "")
	body := func(name string, group any, labels ...string) string {
		b, err := json.Marshal(map[string]any{"name": name, "runner_group_id": group, "labels": labels})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	org := "/orgs/octo/actions/runners/generate-jitconfig"
	want(t, call(t, sim, "POST", org, token, body("taken", 1, "vm")), http.StatusCreated)
	many := make([]string, 101)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for name, tc := range map[string]struct {
		path, body string
		want       int
		says       string
	}{
		"own group":              {org, body("a", group, "vm"), http.StatusCreated, ""},
		"same name elsewhere":    {jitPath, body("taken", 1, "vm"), http.StatusCreated, ""},
		"name in use":            {org, body("taken", 1, "vm"), http.StatusConflict, "Already exists"},
		"no group":               {org, `{"name":"x","labels":["vm"]}`, http.StatusUnprocessableEntity, "runner_group_id"},
		"no name":                {org, `{"runner_group_id":1,"labels":["vm"]}`, http.StatusUnprocessableEntity, "name"},
		"no labels":              {org, body("x", 1), http.StatusUnprocessableEntity, "labels"},
		"too many labels":        {org, body("x", 1, many...), http.StatusUnprocessableEntity, "100"},
		"long label":             {org, body("x", 1, strings.Repeat("l", 257)), http.StatusUnprocessableEntity, "256"},
		"long name":              {org, body(strings.Repeat("n", 65), 1, "vm"), http.StatusUnprocessableEntity, "64"},
		"GitHub's own group":     {org, body("x", 2, "vm"), http.StatusForbidden, ""},
		"unknown group":          {org, body("x", 99, "vm"), http.StatusNotFound, ""},
		"group in a repository":  {jitPath, body("x", group, "vm"), http.StatusNotFound, ""},
		"unknown organization":   {"/orgs/nope/actions/runners/generate-jitconfig", body("x", 1, "vm"), http.StatusNotFound, ""},
		"body that is not JSON":  {org, "{", http.StatusBadRequest, ""},
		"repository not visible": {"/repos/octo/nope/actions/runners/generate-jitconfig", body("x", 1, "vm"), http.StatusNotFound, ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := call(t, sim, "POST", tc.path, token, tc.body)
			want(t, w, tc.want)
			if !strings.Contains(w.Body.String(), tc.says) {
				t.Errorf("the answer does not say %q: %s", tc.says, w.Body)
			}
		})
	}
}

func TestListRunnersPages(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true})
	c := asInstallation(t, sim, octo)
	for i := range 5 {
		_, _, err := c.Actions.GenerateRepoJITConfig(t.Context(), "octo", "demo", &github.GenerateJITConfigRequest{
			Name: fmt.Sprintf("vm-%d", i), RunnerGroupID: 1, Labels: []string{"vm"},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	opt := &github.ListRunnersOptions{ListOptions: github.ListOptions{PerPage: 2}}
	for pages := 1; ; pages++ {
		list, resp, err := c.Actions.ListRunners(t.Context(), "octo", "demo", opt)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range list.Runners {
			names = append(names, r.GetName())
		}
		if list.TotalCount != 5 {
			t.Errorf("total count is %d", list.TotalCount)
		}
		if opt.Page = resp.NextPage; opt.Page == 0 {
			if pages != 3 {
				t.Errorf("%d pages, want 3", pages)
			}
			break
		}
	}
	if got := strings.Join(names, " "); got != "vm-0 vm-1 vm-2 vm-3 vm-4" {
		t.Errorf("listed %s", got)
	}
	one, _, err := c.Actions.ListRunners(t.Context(), "octo", "demo", &github.ListRunnersOptions{Name: github.String("vm-3")})
	if err != nil || one.TotalCount != 1 {
		t.Errorf("by name: %v, %v", one, err)
	}
	org, _, err := c.Actions.ListOrganizationRunners(t.Context(), "octo", nil)
	if err != nil || org.TotalCount != 0 {
		t.Errorf("runners of a repository are listed in the organization: %v, %v", org, err)
	}
}

func TestDeleteIdleRunner(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true})
	c := asInstallation(t, sim, octo)
	jit, _, err := c.Actions.GenerateOrgJITConfig(t.Context(), "octo", &github.GenerateJITConfigRequest{Name: "vm", RunnerGroupID: 1, Labels: []string{"vm"}})
	if err != nil {
		t.Fatal(err)
	}
	id := jit.GetRunner().GetID()
	if r, _, err := c.Actions.GetOrganizationRunner(t.Context(), "octo", id); err != nil || r.GetName() != "vm" {
		t.Fatalf("get: %v, %v", r, err)
	}
	if _, err := c.Actions.RemoveOrganizationRunner(t.Context(), "octo", id); err != nil {
		t.Fatal(err)
	}
	_, err = c.Actions.RemoveOrganizationRunner(t.Context(), "octo", id)
	if e, ok := errors.AsType[*github.ErrorResponse](err); !ok || e.Response.StatusCode != http.StatusNotFound {
		t.Errorf("second delete: %v", err)
	}
	if rs := sim.Runners(); len(rs) != 1 || rs[0].RemovedWhy != "deleted" {
		t.Errorf("runners are %+v", rs)
	}
	again, _, err := c.Actions.GenerateOrgJITConfig(t.Context(), "octo", &github.GenerateJITConfigRequest{Name: "vm", RunnerGroupID: 1, Labels: []string{"vm"}})
	if err != nil || again.GetRunner().GetID() == id {
		t.Errorf("the name of a removed runner is free again, with a new id: %v, %v", again, err)
	}
}

func TestNewRunnersAreListedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Timing: githubsim.Timing{ListLag: time.Minute}})
		token := tokenFor(t, sim, octo, "")
		id := want(t, call(t, sim, "POST", jitPath, token, jitBody("vm")), http.StatusCreated)["runner"].(map[string]any)["id"]
		count := func() any {
			return want(t, call(t, sim, "GET", "/repos/octo/demo/actions/runners", token, ""), http.StatusOK)["total_count"]
		}
		if n := count(); n != 0.0 {
			t.Errorf("listed at once: %v", n)
		}
		want(t, call(t, sim, "GET", fmt.Sprintf("/repos/octo/demo/actions/runners/%.0f", id), token, ""), http.StatusOK)
		time.Sleep(time.Minute)
		if n := count(); n != 1.0 {
			t.Errorf("not listed after the lag: %v", n)
		}
	})
}

func TestListsOfRunsAreLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Timing: githubsim.Timing{ListLag: time.Minute}})
		token := tokenFor(t, sim, octo, "")
		count := func(status string) any {
			return want(t, call(t, sim, "GET", "/repos/octo/demo/actions/runs?status="+status, token, ""), http.StatusOK)["total_count"]
		}
		r := queue(t, sim, githubsim.JobSpec{Name: "x", Labels: []string{"vm"}})
		if n := count("queued"); n != 0.0 {
			t.Errorf("listed at once: %v", n)
		}
		want(t, call(t, sim, "GET", fmt.Sprintf("/repos/octo/demo/actions/runs/%d/jobs", r.ID), token, ""), http.StatusOK)
		time.Sleep(30 * time.Second)
		if n := count("queued"); n != 1.0 {
			t.Errorf("not listed after the lag: %v", n)
		}
		if err := sim.CancelRun(r.ID); err != nil {
			t.Fatal(err)
		}
		if q, c := count("queued"), count("completed"); q != 1.0 || c != 0.0 {
			t.Errorf("just cancelled: %v listed as queued, %v as completed", q, c)
		}
		time.Sleep(30 * time.Second)
		if q, c := count("queued"), count("completed"); q != 0.0 || c != 1.0 {
			t.Errorf("cancelled: %v listed as queued, %v as completed", q, c)
		}
	})
}

func TestUnusedRegistrationEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true})
		want(t, call(t, sim, "POST", jitPath, tokenFor(t, sim, octo, ""), jitBody("vm")), http.StatusCreated)
		time.Sleep(23 * time.Hour)
		if r := sim.Runners()[0]; !r.RemovedAt.IsZero() {
			t.Errorf("removed early: %+v", r)
		}
		time.Sleep(2 * time.Hour)
		if r := sim.Runners()[0]; r.RemovedWhy != "never connected" {
			t.Errorf("still there: %+v", r)
		}
	})
}

func TestRunnerGroups(t *testing.T) {
	sim, octo := startSim(t, githubsim.Options{Kind: true})
	c := asInstallation(t, sim, octo)
	if _, err := sim.AddRunnerGroup("octo", "only-other", false, "other"); err != nil {
		t.Fatal(err)
	}
	made, _, err := c.Actions.CreateOrganizationRunnerGroup(t.Context(), "octo", github.CreateRunnerGroupRequest{Name: github.String("macs")})
	if err != nil || made.GetID() < 3 {
		t.Fatalf("create: %v, %v", made, err)
	}
	list, _, err := c.Actions.ListOrganizationRunnerGroups(t.Context(), "octo", &github.ListOrgRunnerGroupOptions{VisibleToRepository: "demo"})
	if err != nil || list.TotalCount != 2 {
		t.Errorf("groups for demo: %v, %v", list, err)
	}
	if _, _, err := c.Actions.CreateOrganizationRunnerGroup(t.Context(), "octo", github.CreateRunnerGroupRequest{Name: github.String("macs")}); err == nil {
		t.Error("two groups of one name")
	}
	downloads, _, err := c.Actions.ListOrganizationRunnerApplicationDownloads(t.Context(), "octo")
	if err != nil || len(downloads) == 0 {
		t.Errorf("downloads: %v, %v", downloads, err)
	}
}
