// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// post makes one call over HTTP and returns the status, or 0 if there was no answer.
func post(t *testing.T, sim *githubsim.Sim, path, token, body string) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", sim.URL()+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := (&http.Client{Transport: transport(t)}).Do(req)
	if err != nil {
		return 0, nil
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header
}

func TestInjectedFaults(t *testing.T) {
	for name, tc := range map[string]struct {
		fault  githubsim.Fault
		status int
		effect bool
	}{
		"status":                       {githubsim.Fault{Kind: githubsim.FaultStatus, Status: 503}, 503, false},
		"default status":               {githubsim.Fault{Kind: githubsim.FaultStatus}, 502, false},
		"retry after":                  {githubsim.Fault{Kind: githubsim.FaultRetryAfter, Delay: 7 * time.Second}, 429, false},
		"drop":                         {githubsim.Fault{Kind: githubsim.FaultDrop}, 0, false},
		"timeout after success":        {githubsim.Fault{Kind: githubsim.FaultTimeoutAfterSuccess, Status: 504}, 504, true},
		"silence after success":        {githubsim.Fault{Kind: githubsim.FaultTimeoutAfterSuccess}, 0, true},
		"delay":                        {githubsim.Fault{Kind: githubsim.FaultDelay, Delay: time.Millisecond}, 201, true},
		"other method":                 {githubsim.Fault{Kind: githubsim.FaultStatus, Method: "GET"}, 201, true},
		"other path":                   {githubsim.Fault{Kind: githubsim.FaultStatus, Path: "/orgs/"}, 201, true},
		"no match":                     {githubsim.Fault{Kind: githubsim.FaultStatus, Match: func(*http.Request) bool { return false }}, 201, true},
		"deliveries only":              {githubsim.Fault{Kind: githubsim.DeliveryLost}, 201, true},
		"method in any case, and path": {githubsim.Fault{Kind: githubsim.FaultStatus, Method: "post", Path: "generate-jitconfig"}, 502, false},
	} {
		t.Run(name, func(t *testing.T) {
			sim, octo := startSim(t, githubsim.Options{Kind: true})
			token := tokenFor(t, sim, octo, "")
			if err := sim.Inject(tc.fault); err != nil {
				t.Fatal(err)
			}
			status, header := post(t, sim, jitPath, token, jitBody("vm"))
			if status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			if tc.fault.Kind == githubsim.FaultRetryAfter && header.Get("Retry-After") != "7" {
				t.Errorf("Retry-After is %q", header.Get("Retry-After"))
			}
			if effect := len(sim.Runners()) == 1; effect != tc.effect {
				t.Errorf("took effect: %v, want %v", effect, tc.effect)
			}
			sim.ClearFaults()
			again, _ := post(t, sim, jitPath, token, jitBody("vm"))
			if want := map[bool]int{true: 409, false: 201}[tc.effect]; again != want {
				t.Errorf("the second try answers %d, want %d", again, want)
			}
		})
	}
}

func TestFaultCount(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	token := tokenFor(t, sim, octo, "")
	if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Count: 2}); err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{502, 502, 200} {
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), status)
	}
	if err := sim.Inject(githubsim.Fault{Kind: githubsim.FaultStatus, Count: -1}); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), 502)
	}
	sim.ClearFaults()
	want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), 200)
}

func TestFaultsThatCannotBe(t *testing.T) {
	sim, _ := newSim(t, githubsim.Options{Kind: true})
	for name, f := range map[string]githubsim.Fault{
		"no kind":             {},
		"unknown kind":        {Kind: "gremlin"},
		"delay without delay": {Kind: githubsim.FaultDelay},
		"late without delay":  {Kind: githubsim.DeliveryLate},
		"success as a fault":  {Kind: githubsim.FaultStatus, Status: 200},
	} {
		if sim.Inject(f) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestRandomFaults(t *testing.T) {
	sim, _ := startSim(t, githubsim.Options{Kind: true, FaultRate: 0.3})
	statuses := map[int]int{}
	for range 100 {
		status, _ := post(t, sim, "/nowhere", "", "")
		statuses[status]++
	}
	for _, status := range []int{404, 502, 503, 504, 0} {
		if statuses[status] == 0 {
			t.Errorf("status %d never came: %v", status, statuses)
		}
	}
	faulty := 0
	for _, r := range sim.Requests() {
		if r.Fault != "" {
			faulty++
		}
	}
	if faulty < 10 || faulty > 60 {
		t.Errorf("%d of 100 requests are noted as faulty; about 30 are meant", faulty)
	}
}
