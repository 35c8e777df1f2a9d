// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// GitHub's clock is another than this machine's: all that it tells and checks is by its own.
func TestClockOfGitHub(t *testing.T) {
	for _, ahead := range []time.Duration{0, 20 * time.Minute, -20 * time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			deliveries := make(chan time.Time, 10)
			hook := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				var in struct {
					Job struct {
						CreatedAt time.Time `json:"created_at"`
					} `json:"workflow_job"`
				}
				if json.NewDecoder(r.Body).Decode(&in) == nil && !in.Job.CreatedAt.IsZero() {
					deliveries <- in.Job.CreatedAt
				}
			}))
			defer hook.Close()
			sim, octo := newSim(t, githubsim.Options{Kind: true, Ahead: ahead, WebhookURL: hook.URL})
			there := func() time.Time { return time.Now().Add(ahead) }
			near := func(what string, got, want time.Time) {
				t.Helper()
				if off := got.Sub(want); off.Abs() > 3*time.Minute {
					t.Errorf("%s is %s off GitHub's clock", what, off)
				}
			}
			at := func(from time.Duration) string {
				return jwt(t, appKey(), map[string]any{"iat": there().Add(from).Unix(), "exp": there().Add(from + 5*time.Minute).Unix()})
			}
			good := call(t, sim, "GET", "/app", at(-time.Minute), "")
			want(t, good, http.StatusOK)
			date, err := http.ParseTime(good.Header().Get("Date"))
			if err != nil {
				t.Fatal(err)
			}
			near("the answer's date", date, there())
			reset, err := strconv.ParseInt(good.Header().Get("X-Ratelimit-Reset"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			near("the limit's end", time.Unix(reset, 0), there().Add(time.Hour))
			want(t, call(t, sim, "GET", "/app", at(time.Minute), ""), http.StatusUnauthorized)
			want(t, call(t, sim, "GET", "/app", at(-6*time.Minute), ""), http.StatusUnauthorized)

			var token struct {
				Token   string    `json:"token"`
				Expires time.Time `json:"expires_at"`
			}
			read := func(a *httptest.ResponseRecorder, into any) {
				t.Helper()
				if err := json.Unmarshal(a.Body.Bytes(), into); err != nil {
					t.Fatal(err)
				}
			}
			read(call(t, sim, "POST", "/app/installations/"+strconv.FormatInt(octo, 10)+"/access_tokens", at(-time.Minute), ""), &token)
			near("the token's end", token.Expires, there().Add(time.Hour))
			run, err := sim.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: []githubsim.JobSpec{{Name: "one", Labels: []string{"x"}}}})
			if err != nil {
				t.Fatal(err)
			}
			var job struct {
				CreatedAt time.Time `json:"created_at"`
			}
			read(call(t, sim, "GET", "/repos/octo/demo/actions/jobs/"+strconv.FormatInt(run.JobIDs[0], 10), token.Token, ""), &job)
			near("the job's beginning", job.CreatedAt, there())
			near("the delivery's job", <-deliveries, there())
			if err := sim.WaitDelivered(t.Context()); err != nil {
				t.Fatal(err)
			}
			var list []struct {
				DeliveredAt time.Time `json:"delivered_at"`
			}
			read(call(t, sim, "GET", "/app/hook/deliveries", at(-time.Minute), ""), &list)
			if len(list) == 0 {
				t.Fatal("no delivery is listed")
			}
			near("the delivery", list[0].DeliveredAt, there())
			j, _ := sim.Job(run.JobIDs[0])
			if off := time.Since(j.QueuedAt); off.Abs() > 3*time.Minute {
				t.Errorf("the job is told to its test by another clock: %s off", off)
			}
		})
	}
}
