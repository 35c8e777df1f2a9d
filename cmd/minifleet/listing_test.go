// SPDX-License-Identifier: MIT

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/internal/keepport"
)

func TestListings(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	token := c.hostToken("mini-1")
	g := newGates()
	g.create.open()
	startHost(t, hostConfig(t, c.agents, "mini-1", "", token), g)
	c.one("state", "online", "hosts")
	run := s.queue(macLabels(), append(macLabels(), "big"), append(macLabels(), "big"), []string{"windows"})
	other := s.queue([]string{"windows"})
	s.delivered()
	eventually(t, "both slots are taken", func() bool { return len(c.list("runners", "--phase", "booting")) == 2 })
	if err := s.sim.CancelJob(other.JobIDs[0]); err != nil {
		t.Fatal(err)
	}
	s.delivered()
	all := func(r ...int64) []string {
		out := []string{}
		for _, id := range r {
			out = append(out, fmt.Sprint(id))
		}
		return out
	}
	host := fmt.Sprint(c.list("hosts")[0]["id"])
	for name, test := range map[string]struct {
		args  []string
		field string
		want  []string
	}{
		"all jobs":               {[]string{"jobs"}, "id", all(append(slices.Clone(run.JobIDs), other.JobIDs...)...)},
		"jobs in a state":        {[]string{"jobs", "--state", "completed"}, "id", all(other.JobIDs...)},
		"jobs in either state":   {[]string{"jobs", "--state", "completed,queued"}, "id", all(append(slices.Clone(run.JobIDs), other.JobIDs...)...)},
		"jobs of a repository":   {[]string{"jobs", "--repo", "octo/demo", "--state", "queued"}, "id", all(run.JobIDs...)},
		"jobs of another":        {[]string{"jobs", "--repo", "octo/other"}, "id", []string{}},
		"jobs of a run":          {[]string{"jobs", "--run-id", fmt.Sprint(other.ID)}, "id", all(other.JobIDs...)},
		"runners of a pool":      {[]string{"runners", "--pool", "big"}, "pool", []string{"big"}},
		"runners of a host name": {[]string{"runners", "--host", "mini-1", "--pool", "mac"}, "pool", []string{"mac"}},
		"runners of a host id":   {[]string{"runners", "--host", host, "--pool", "mac"}, "host", []string{host}},
		"runners of no host":     {[]string{"runners", "--host", "mini-9"}, "id", []string{}},
		"runners in a phase":     {[]string{"runners", "--phase", "idle"}, "id", []string{}},
		"hosts that are online":  {[]string{"hosts", "--state", "online"}, "name", []string{"mini-1"}},
		"hosts that are not":     {[]string{"hosts", "--state", "unreachable"}, "name", []string{}},
		"pools":                  {[]string{"pools"}, "name", []string{"big", "mac"}},
		"pools of a repository":  {[]string{"pools", "--repo", "octo/demo"}, "name", []string{"big", "mac"}},
		"pools of no use":        {[]string{"pools", "--repo", "acme/rockets"}, "name", []string{}},
		"deliveries that failed": {[]string{"deliveries", "--status", "failed"}, "guid", []string{}},
	} {
		t.Run(name, func(t *testing.T) {
			c := &served{t: t, admin: c.admin}
			got := c.list(test.args...).column(test.field)
			slices.Sort(got)
			slices.Sort(test.want)
			if !slices.Equal(got, test.want) {
				t.Errorf("minifleet get %s: %v, want %v", strings.Join(test.args, " "), got, test.want)
			}
		})
	}

	c.waiting(fmt.Sprint(run.JobIDs[2]), "pool_limit", "big")
	queued := s.queue(macLabels()).JobIDs[0]
	s.delivered()
	c.waiting(fmt.Sprint(queued), "no_slot", "slot")
	pages(t, c)
	tables(t, c)
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no such job":          {[]string{"get", "explain", "1"}, "404"},
		"a job id of letters":  {[]string{"get", "explain", "x"}, "whole number"},
		"no job id":            {[]string{"get", "explain"}, "want GitHub's id"},
		"no such runner":       {[]string{"get", "timeline", "r-none"}, "404"},
		"a path as runner":     {[]string{"get", "timeline", "../pools"}, "want an id"},
		"an unknown state":     {[]string{"get", "jobs", "--state", "asleep"}, `"asleep" is not one of its values: want`},
		"an unknown phase":     {[]string{"get", "runners", "--phase", "asleep"}, "is not one of its values"},
		"an unknown status":    {[]string{"get", "deliveries", "--status", "lost"}, "is not one of its values"},
		"a filter of no use":   {[]string{"get", "hosts", "--pool", "mac"}, `the filter "pool" is for runners, not for hosts`},
		"not a repository":     {[]string{"get", "jobs", "--repo", "octo"}, "owner/name"},
		"an unknown kind":      {[]string{"get", "boats"}, "must be one of"},
		"an unknown output":    {[]string{"get", "jobs", "-o", "yaml"}, "must be one of"},
		"a negative limit":     {[]string{"get", "jobs", "--limit=-1"}, "limit -1"},
		"a bad name of a host": {[]string{"host", "token", "--name", "Mini 1"}, "lower-case"},
		"a negative lifetime":  {[]string{"host", "token", "--ttl=-1h"}, "ttl"},
		"an unknown flag":      {[]string{"get", "jobs", "--colour"}, "unknown flag"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &served{t: t, admin: c.admin}
			if out, err := c.cli(test.args...); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("minifleet %s: %q %v, want an error with %q", strings.Join(test.args, " "), out, err, test.want)
			}
		})
	}
}

// pages follows limits and cursors.
func pages(t *testing.T, c *served) {
	t.Helper()
	all := c.list("jobs").column("id")
	if got := c.list("jobs", "--limit", "2").column("id"); !slices.Equal(got, all[:2]) {
		t.Errorf("the first two of %v are %v", all, got)
	}
	var page struct {
		Items []json.RawMessage `json:"items"`
		Next  string            `json:"next"`
	}
	if err := json.Unmarshal([]byte(c.get("jobs", "--limit", "2", "-o", "json")), &page); err != nil || page.Next == "" {
		t.Errorf("a page of two has no cursor for the next: %v", err)
	}
	if table := c.get("jobs", "--limit", "2"); !strings.Contains(table, "(there is more: raise the limit above 2)") || strings.Count(table, "\n") != 4 {
		t.Errorf("a table of two:\n%s", table)
	}
	if table := c.get("jobs", "--limit", fmt.Sprint(len(all))); strings.Contains(table, "there is more") {
		t.Errorf("a table of all %d jobs says that there is more:\n%s", len(all), table)
	}
}

func tables(t *testing.T, c *served) {
	t.Helper()
	for kind, parts := range map[string][]string{
		"jobs":       {"ID", "REPOSITORY", "STATE", "octo/demo", "ci / job-1", "queued", "completed", "cancelled"},
		"runners":    {"POOL", "HOST", "PHASE", "mini-1", "booting", "mac", "big"},
		"hosts":      {"FREE SLOTS", "mini-1", "online", "0 of 2", "sonoma"},
		"pools":      {"LABELS", "SCOPES", "self-hosted", "octo/demo", "1 booting"},
		"deliveries": {"GUID", "workflow_job.queued", "workflow_run.requested", "ping", "processed"},
	} {
		table := c.get(kind)
		for _, part := range parts {
			if !strings.Contains(table, part) {
				t.Errorf("minifleet get %s lacks %q:\n%s", kind, part, table)
			}
		}
	}
}

func TestCallerMistakes(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	nobody := "http://" + keepport.Address(t)
	wrongFile := s.file("wrong.token", "guess")
	for name, test := range map[string]struct {
		getenv func(string) string
		args   []string
		want   []string
	}{
		"wrong token":            {variables("MINIFLEET_TOKEN", "guess"), []string{"get", "jobs", "--server", c.admin}, []string{"refuses the token", "MINIFLEET_TOKEN", "--token-file"}},
		"wrong token in a file":  {nothing, []string{"get", "jobs", "--server", c.admin, "--token-file", wrongFile}, []string{"refuses the token"}},
		"wrong token for a host": {variables("MINIFLEET_TOKEN", "guess"), []string{"host", "token", "--server", c.admin}, []string{"401"}},
		"no token":               {nothing, []string{"get", "jobs", "--server", c.admin}, []string{"no token", "MINIFLEET_TOKEN", "--token-file"}},
		"no such token file":     {nothing, []string{"get", "jobs", "--server", c.admin, "--token-file", s.path("none")}, []string{"none", "no such file"}},
		"nobody listens":         {variables("MINIFLEET_TOKEN", "x"), []string{"get", "jobs", "--server", nobody}, []string{"nothing listens at " + nobody, "minifleet serve"}},
		"the wrong door":         {variables("MINIFLEET_TOKEN", operatorToken), []string{"get", "jobs", "--server", c.agents}, []string{"operator API"}},
		"in the clear":           {variables("MINIFLEET_TOKEN", operatorToken), []string{"get", "jobs", "--server", "http://192.0.2.1:8090"}, []string{"in the clear"}},
		"no URL":                 {variables("MINIFLEET_TOKEN", operatorToken), []string{"get", "jobs", "--server", "mini"}, []string{"want a URL"}},
		"no command":             {nothing, nil, []string{"expected one of"}},
		"no agents":              {nothing, []string{"dev", "--agents", "0"}, []string{"at least one agent"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), test.args, strings.NewReader(""), io.Discard, io.Discard, test.getenv)
			for _, part := range test.want {
				if err == nil || !strings.Contains(err.Error(), part) {
					t.Errorf("minifleet %s: %v, want %q in it", strings.Join(test.args, " "), err, part)
				}
			}
			if err != nil && (strings.Contains(err.Error(), operatorToken) || strings.Contains(err.Error(), "guess")) {
				t.Errorf("the error tells the token: %v", err)
			}
		})
	}
	// A token in a file works, whatever white space an editor put around it.
	var out strings.Builder
	if err := run(t.Context(), []string{"get", "pools", "--server", c.admin, "--token-file", s.path("admin.token")}, nil, &out, io.Discard, nothing); err != nil || !strings.Contains(out.String(), "mac") {
		t.Errorf("with a token file: %v %s", err, out.String())
	}
}

func TestAddressInUse(t *testing.T) {
	t.Parallel()
	for _, door := range []string{"webhook", "agents", "admin"} {
		t.Run(door, func(t *testing.T) {
			s := newSite(t)
			taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer taken.Close()
			at := fmt.Sprintf(`{address: %q}`, taken.Addr())
			switch door {
			case "webhook":
				s.webhook = at
			case "agents":
				s.agents = at
			default:
				s.admin = fmt.Sprintf(`{address: %q, token_file: admin.token}`, taken.Addr())
			}
			var out strings.Builder
			err = run(t.Context(), []string{"serve", "--config", s.config()}, nil, &out, io.Discard, nothing)
			if err == nil || !strings.HasPrefix(err.Error(), door+": ") || !strings.Contains(err.Error(), taken.Addr().String()) || !strings.Contains(err.Error(), "in use") {
				t.Errorf("%v, want that %s cannot listen at %s", err, door, taken.Addr())
			}
			if out.Len() > 0 {
				t.Errorf("addresses announced by a controller that does not start: %s", &out)
			}
		})
	}
}

// Prometheus sees the fleet and the calls, with the operator's token only.
func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	s.queue(macLabels())
	s.delivered()
	scrape := func(token string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.admin+"/metrics", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	if status, text := scrape("guessed"); status != http.StatusUnauthorized {
		t.Errorf("without the token: %d %s", status, text)
	}
	for _, line := range []string{
		`minifleet_jobs{state="queued"} 1`, `minifleet_job_waits{reason="no_host"} 1`, `minifleet_deliveries_total{status="processed"} `,
		`minifleet_decision_seconds_count `, fmt.Sprintf(`minifleet_github_calls_total{app="%d",class="installation",installation="0",status="200"} `, s.sim.AppID()),
		fmt.Sprintf(`minifleet_github_rate_limit{app="%d",installation="0",resource="core"} 5000`, s.sim.AppID()),
		fmt.Sprintf(`minifleet_github_unreachable{app="%d"} 0`, s.sim.AppID()),
	} {
		eventually(t, line, func() bool {
			status, text := scrape(operatorToken)
			return status == http.StatusOK && strings.Contains(text, "\n"+line)
		})
	}
}
