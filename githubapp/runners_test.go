// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/trust"
)

// listing serves n runners named r1 to rN in pages of at most 100. It ignores the
// filter by name, as an older server does.
func listing(n int) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		page, _ := strconv.Atoi(r.URL.Query().Get("page"))
		size, _ := strconv.Atoi(r.URL.Query().Get("per_page"))
		page, size = max(page, 1), min(max(size, 1), 100)
		list := []map[string]any{}
		for i := (page-1)*size + 1; i <= min(page*size, n); i++ {
			list = append(list, map[string]any{"id": i, "name": fmt.Sprintf("R%d", i), "status": "offline"})
		}
		if page*size < n {
			w.Header().Set("Link", fmt.Sprintf(`<http://%s%s?page=%d>; rel="next"`, r.Host, r.URL.Path, page+1))
		}
		b, _ := json.Marshal(map[string]any{"total_count": n, "runners": list})
		reply(w, 200, string(b))
	}
}

func TestRunnerPages(t *testing.T) {
	for name, scope := range map[string]fleet.Scope{"orgs/acme": org, "repos/acme/rockets": rocket} {
		t.Run(name, func(t *testing.T) {
			o := newOdd(t)
			o.on("GET /"+name+"/actions/runners", listing(250))
			a := o.app()
			var ids []int64
			err := a.ListRunners(t.Context(), scope, func(r githubapp.Runner) bool { ids = append(ids, r.ID); return true })
			if err != nil || len(ids) != 250 || ids[249] != 250 {
				t.Errorf("%d runners, %v", len(ids), err)
			}
			before := o.count("GET", "/actions/runners")
			ids = nil
			err = a.ListRunners(t.Context(), scope, func(r githubapp.Runner) bool { ids = append(ids, r.ID); return len(ids) < 10 })
			if err != nil || len(ids) != 10 || o.count("GET", "/actions/runners") != before+1 {
				t.Errorf("stopped after %d runners, %v", len(ids), err)
			}
			if r, ok, err := a.FindRunner(t.Context(), scope, "r205"); !ok || err != nil || r.ID != 205 {
				t.Errorf("find in another case on the last page: %+v, %t, %v", r, ok, err)
			}
			if _, ok, err := a.FindRunner(t.Context(), scope, "r20"+"5x"); ok || err != nil {
				t.Errorf("find a longer name: %t, %v", ok, err)
			}
		})
	}
}

func TestPagesThatDoNotEnd(t *testing.T) {
	o := newOdd(t)
	o.on("GET /orgs/acme/actions/runners", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", `<http://`+r.Host+r.URL.Path+`?page=2>; rel="next"`)
		reply(w, 200, `{"runners":[]}`)
	})
	if err := o.app().ListRunners(t.Context(), org, func(githubapp.Runner) bool { return true }); err == nil || !strings.Contains(err.Error(), "do not end") {
		t.Errorf("error %v", err)
	}
}

func TestGetRunner(t *testing.T) {
	o := newOdd(t)
	o.on("GET /orgs/acme/actions/runners/5", runnerHandler(5))
	o.on("GET /repos/acme/rockets/actions/runners/5", runnerHandler(5))
	o.on("GET /orgs/acme/actions/runners/6", runnerHandler(5))
	o.on("GET /orgs/acme/actions/runners/7", replying(200, `{"id":`))
	a := o.app()
	for _, scope := range []fleet.Scope{org, rocket} {
		r, ok, err := a.GetRunner(t.Context(), scope, 5)
		if !ok || err != nil || r.Name != "s1-mac-abc" || !r.Online || !r.Busy || r.OS != "macOS" || strings.Join(r.Labels, ",") != "macOS" {
			t.Errorf("%s: %+v, %t, %v", scope, r, ok, err)
		}
	}
	if _, ok, err := a.GetRunner(t.Context(), org, 4); ok || err != nil {
		t.Errorf("gone: %t, %v", ok, err)
	}
	for _, id := range []int64{6, 7} {
		if _, _, err := a.GetRunner(t.Context(), org, id); err == nil {
			t.Errorf("odd answer to %d was taken", id)
		}
	}
}

func TestDeleteRunner(t *testing.T) {
	for status, want := range map[int]error{204: nil, 404: nil, 422: githubapp.ErrBusy, 403: githubapp.ErrRefused} {
		for _, scope := range []fleet.Scope{org, rocket} {
			o := newOdd(t)
			o.on("DELETE /orgs/acme/actions/runners/5", replying(status, ``))
			o.on("DELETE /repos/acme/rockets/actions/runners/5", replying(status, ``))
			if err := o.app().DeleteRunner(t.Context(), scope, 5); !errors.Is(err, want) {
				t.Errorf("%d: %v", status, err)
			}
		}
	}
	o := newOdd(t)
	o.on("DELETE /orgs/acme/actions/runners/5", replying(500, ``))
	if err := o.app().DeleteRunner(t.Context(), org, 5); err == nil || errors.Is(err, githubapp.ErrBusy) {
		t.Errorf("500: %v", err)
	}
	if err := o.app().DeleteRunner(t.Context(), org, 0); err == nil {
		t.Error("no id was taken")
	}
}

func TestRateLimits(t *testing.T) {
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	reset := strconv.FormatInt(now.Add(20*time.Minute).Unix(), 10)
	for _, c := range []struct {
		name   string
		status int
		body   string
		header []string
		until  time.Duration // 0: not a limit
	}{
		{"primary", 403, `{}`, []string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", reset}, 20 * time.Minute},
		{"primary as 429", 429, `{}`, []string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", reset}, 20 * time.Minute},
		{"reset in the past", 403, `{}`, []string{"X-RateLimit-Remaining", "0", "X-RateLimit-Reset", "1000000000"}, time.Minute},
		{"retry after", 429, `{}`, []string{"Retry-After", "90"}, 90 * time.Second},
		{"retry after a date", 429, `{}`, []string{"Retry-After", now.Add(3 * time.Minute).Format(http.TimeFormat)}, 3 * time.Minute},
		{"retry after beyond belief", 429, `{}`, []string{"Retry-After", "9223372036854775807"}, time.Hour},
		{"retry at once", 429, `{}`, []string{"Retry-After", "0"}, time.Second},
		{"bare 429", 429, `?`, nil, time.Minute},
		{"secondary with retry after", 403, `{}`, []string{"Retry-After", "70"}, 70 * time.Second},
		{
			"secondary, requests remaining", 403, `{"documentation_url":"https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"}`,
			[]string{"X-RateLimit-Remaining", "4000", "X-RateLimit-Reset", reset},
			time.Minute,
		},
		{"permission", 403, `{"message":"Resource not accessible by integration"}`, []string{"X-RateLimit-Remaining", "4000", "X-RateLimit-Reset", reset}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOdd(t)
			o.on(repoMint, replying(c.status, c.body, c.header...))
			a := o.app(func(g *githubapp.Config) { g.Now = func() time.Time { return now } })
			_, err := a.Register(t.Context(), ask(rocket))
			var limited *githubapp.RateLimited
			if !errors.As(err, &limited) {
				if c.until != 0 || !errors.Is(err, githubapp.ErrRefused) {
					t.Errorf("error %v", err)
				}
				return
			}
			if c.until == 0 || !limited.Until.Equal(now.Add(c.until)) || errors.Is(err, githubapp.ErrUncertain) {
				t.Errorf("%v, want until %s", err, now.Add(c.until))
			}
		})
	}
	t.Run("of the token and of look-ups", func(t *testing.T) {
		var limited *githubapp.RateLimited
		o := newOdd(t)
		o.on("POST /app/installations/7/access_tokens", replying(429, ``, "Retry-After", "5"))
		if _, err := o.app().Register(t.Context(), ask(org)); !errors.As(err, &limited) {
			t.Errorf("token: %v", err)
		}
		o.on("GET /orgs/acme/installation", replying(429, ``, "Retry-After", "5"))
		if _, err := o.app().Register(t.Context(), ask(org)); !errors.As(err, &limited) {
			t.Errorf("look-up: %v", err)
		}
	})
}

func TestRates(t *testing.T) {
	o := newOdd(t)
	reset := time.Now().Add(time.Hour).Truncate(time.Second)
	at := func(resource string, remaining int, h http.HandlerFunc) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			for k, v := range map[string]string{
				"Resource": resource, "Limit": "5000", "Remaining": strconv.Itoa(remaining), "Used": strconv.Itoa(5000 - remaining), "Reset": strconv.FormatInt(reset.Unix(), 10),
			} {
				w.Header().Set("X-RateLimit-"+k, v)
			}
			h(w, r)
		}
	}
	o.on("GET /orgs/acme/actions/runners/4", at("core", 4711, runnerHandler(4)))
	o.on("GET /orgs/acme/actions/runners/5", at("core", 4712, runnerHandler(5))) // an older answer, overtaken
	o.on("GET /repos/acme/rockets/actions/jobs/6", at("actions_runner_registration", 0, replying(404, `{}`)))
	o.on("GET /orgs/acme/actions/runners/7", at("core", 0, runnerHandler(7)))
	a := o.app()
	for id := range int64(2) {
		if _, _, err := a.GetRunner(t.Context(), org, id+4); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := a.GetJob(t.Context(), "acme", "rockets", 6); err != nil {
		t.Fatal(err)
	}
	got := a.Rates()
	if len(got) != 2 || got[0].Resource != "actions_runner_registration" || got[0].Remaining != 0 || got[0].InstallationID != 7 ||
		got[1].Resource != "core" || got[1].Remaining != 4711 || got[1].Used != 289 || got[1].Limit != 5000 || !got[1].Reset.Equal(reset) || got[1].SeenAt.IsZero() {
		t.Errorf("rates %+v", got)
	}
	// A limit that is used up holds back what is charged to it, and not the rest.
	if _, _, err := a.GetJob(t.Context(), "acme", "rockets", 6); !errors.As(err, new(*githubapp.RateLimited)) {
		t.Errorf("sent although its limit is used up: %v", err)
	}
	if _, _, err := a.GetRunner(t.Context(), org, 7); err != nil {
		t.Errorf("held back: %v", err)
	}
	var limited *githubapp.RateLimited
	if _, _, err := a.GetRunner(t.Context(), org, 5); !errors.As(err, &limited) || !limited.Until.Equal(reset) {
		t.Errorf("after the last request of the hour: %v", err)
	}
	if n := o.count("GET", "/runners/5"); n != 1 {
		t.Errorf("a request was sent beyond the limit")
	}
}

func TestGetJob(t *testing.T) {
	body := func(status string) string {
		return fmt.Sprintf(`{"id":58,"run_id":20,"run_attempt":2,"status":%q,"conclusion":null,"name":"test","workflow_name":"build",
			"labels":["macOS","self-hosted"],"runner_name":"s1-mac-abc","html_url":"https://github.com/acme/rockets/x","created_at":"2026-11-21T09:00:03Z"}`, status)
	}
	for status, want := range map[string]fleet.JobEvent{
		"queued": fleet.SeenQueued, "in_progress": fleet.SeenInProgress, "completed": fleet.SeenCompleted,
		"waiting": fleet.SeenWaiting, "pending": fleet.SeenWaiting, "requested": fleet.SeenWaiting, "asleep": "",
	} {
		o := newOdd(t)
		o.on("GET /repos/acme/rockets/actions/jobs/58", replying(200, body(status)))
		news, ok, err := o.app().GetJob(t.Context(), "acme", "rockets", 58)
		if want == "" {
			if err == nil {
				t.Errorf("status %s was taken", status)
			}
			continue
		}
		j := news.Job
		if !ok || err != nil || news.Event != want || j.ID != 58 || j.RunID != 20 || j.RunAttempt != 2 || j.InstallationID != 7 || j.Repository() != "acme/rockets" ||
			j.Labels.String() != "macos,self-hosted" || j.RunnerName != "s1-mac-abc" || j.Workflow != "build" || j.URL == "" || j.CreatedAt.IsZero() {
			t.Errorf("%s: %+v, %t, %v", status, news, ok, err)
		}
	}
	o := newOdd(t)
	a := o.app()
	if _, ok, err := a.GetJob(t.Context(), "acme", "rockets", 58); ok || err != nil {
		t.Errorf("no such job: %t, %v", ok, err)
	}
	o.on("GET /repos/acme/rockets/actions/jobs/59", replying(200, body("queued")))
	if _, _, err := a.GetJob(t.Context(), "acme", "rockets", 59); err == nil {
		t.Error("another job's answer was taken")
	}
	if _, _, err := a.GetJob(t.Context(), "acme", "", 58); err == nil {
		t.Error("no repository was taken")
	}
}

func TestRunnerName(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct{ site, pool string }{{"s7k2", "mac"}, {"s7k2", strings.Repeat("p", 32)}, {strings.Repeat("s", 40), strings.Repeat("p", 32)}, {"s", ""}} {
		for range 100 {
			name := githubapp.RunnerName(c.site, c.pool)
			if len(name) > 64 || !strings.HasPrefix(name, c.site+"-") || seen[name] {
				t.Fatalf("name %q", name)
			}
			seen[name] = true
			if !githubapp.OfSite(c.site, name) || !githubapp.OfSite(c.site, strings.ToUpper(name)) || githubapp.OfSite(c.site+"x", name) {
				t.Fatalf("name %q is not told as its site's", name)
			}
		}
	}
	if name := githubapp.RunnerName("s7k2", "mac-15"); !strings.HasPrefix(name, "s7k2-mac-15-") {
		t.Errorf("name %q", name)
	}
	for _, foreign := range []string{"", "s7k2", "s7k2-", "s7k2-mac", "s7k2-mac-abc", "s7k2-mac-0123456789abcdef", "xs7k2-mac-aaaabbbbccccdddd"} {
		if githubapp.OfSite("s7k2", foreign) {
			t.Errorf("%q is told as ours", foreign)
		}
	}
}

func TestGetRun(t *testing.T) {
	const at = "GET /repos/acme/rockets/actions/runs/20/attempts/2"
	body := func(head, repository string) string {
		return fmt.Sprintf(`{"id":20,"run_attempt":2,"event":"pull_request","status":"queued","conclusion":null,"head_repository":%s,
			"repository":%s,"actor":{"login":"eve"},"triggering_actor":{"login":"ann"}}`, head, repository)
	}
	for name, c := range map[string]struct {
		head, repository, wantHead string
		fork                       bool
		visibility                 trust.Visibility
	}{
		"its own":          {`{"full_name":"Acme/Rockets"}`, `{"private":true}`, "Acme/Rockets", false, trust.Private},
		"a fork's":         {`{"full_name":"eve/rockets"}`, `{"private":false}`, "eve/rockets", true, trust.Public},
		"a fork that went": {`null`, `{"full_name":"acme/rockets"}`, "", true, trust.Unknown},
		"no repository":    {`{"full_name":"acme/rockets"}`, `null`, "acme/rockets", false, trust.Unknown},
	} {
		o := newOdd(t)
		o.on(at, replying(200, body(c.head, c.repository)))
		want := fleet.Run{
			ID: 20, Attempt: 2, Repository: "acme/rockets", Visibility: c.visibility, Event: "pull_request", HeadRepository: c.wantHead, Fork: c.fork,
			Actor: "eve", TriggeringActor: "ann", Status: "queued",
		}
		if got, ok, err := o.app().GetRun(t.Context(), "acme", "rockets", fleet.RunKey{ID: 20, Attempt: 2}); !ok || err != nil || got != want {
			t.Errorf("%s: %+v, %t, %v", name, got, ok, err)
		}
	}
	o := newOdd(t)
	a := o.app()
	if _, ok, err := a.GetRun(t.Context(), "acme", "rockets", fleet.RunKey{ID: 21, Attempt: 1}); ok || err != nil {
		t.Errorf("no such run: %t, %v", ok, err)
	}
	o.on("GET /repos/acme/rockets/actions/runs/20/attempts/1", replying(200, body(`null`, `null`)))
	o.on(at, replying(200, body(`{"full_name":"acme/../x"}`, `null`)))
	for _, k := range []fleet.RunKey{{ID: 20, Attempt: 1}, {ID: 20, Attempt: 2}} {
		if run, _, err := a.GetRun(t.Context(), "acme", "rockets", k); err == nil {
			t.Errorf("%v: %+v was taken", k, run)
		}
	}
	if _, _, err := a.GetRun(t.Context(), "acme", "", fleet.RunKey{ID: 20, Attempt: 2}); err == nil {
		t.Error("no repository was taken")
	}
}
