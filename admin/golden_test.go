// SPDX-License-Identifier: MIT

package admin_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/admin/admintest"
)

var update = flag.Bool("update", false, "write the answers to testdata instead of comparing them")

// TestWireTypes compares real answers with files: an operator's scripts read
// them, so that they change on purpose or not at all.
func TestWireTypes(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for name, c := range map[string]struct{ method, path, body string }{
		"jobs":            {"GET", "/api/v1/jobs?limit=3", ""},
		"job":             {"GET", "/api/v1/jobs/9", ""},
		"job-bare":        {"GET", "/api/v1/jobs/7", ""},
		"explanation":     {"GET", "/api/v1/jobs/12/explain", ""},
		"runners":         {"GET", "/api/v1/runners?all=true&limit=5", ""},
		"runner":          {"GET", "/api/v1/runners/r-old", ""},
		"timeline":        {"GET", "/api/v1/runners/r-busy/timeline", ""},
		"timeline-empty":  {"GET", "/api/v1/runners/r-new/timeline", ""},
		"hosts":           {"GET", "/api/v1/hosts", ""},
		"pools":           {"GET", "/api/v1/pools?limit=2", ""},
		"deliveries":      {"GET", "/api/v1/deliveries", ""},
		"enrolment-token": {"POST", "/api/v1/enrolment-tokens", `{"host_name":"mini-9","ttl_seconds":600}`},
		"version":         {"GET", "/api/v1/version", ""},
		"health":          {"GET", "/healthz", ""},
		"error":           {"GET", "/api/v1/hosts?state=lost", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := h.send(t, c.method, c.path, c.body)
			var pretty bytes.Buffer
			if err := json.Indent(&pretty, []byte(got.body), "", "  "); err != nil {
				t.Fatalf("%v: %s", err, got.body)
			}
			file := filepath.Join("testdata", name+".json")
			if *update {
				if err := os.WriteFile(file, pretty.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), pretty.String()); diff != "" {
				t.Errorf("%s (-want +got; if it is meant: go test ./admin -run TestWireTypes -update):\n%s", file, diff)
			}
		})
	}
}

func TestExplanations(t *testing.T) {
	t.Parallel()
	store := admintest.Sample()
	h := start(t, store)
	for id, c := range map[int]struct {
		why    string
		code   string
		runner string
		since  string
	}{
		16: {"deployment gate", "", "", "2026-11-02T10:24:00Z"},
		15: {"runner r-boot is booting on mini-1", "booting", "r-boot", "2026-11-02T10:27:00Z"},
		14: {"no pool has the labels gpu", "no_pool", "", "2026-11-02T10:27:00Z"},
		13: {"no decision", "", "", "2026-11-02T10:29:59Z"},
		12: {"runs on runner r-busy at host mini-1", "", "r-busy", "2026-11-02T10:26:00Z"},
		11: {"their-own-machine, which is none of this fleet's", "", "", "2026-11-02T10:26:00Z"},
		10: {"has not said on which runner", "", "", "2026-11-02T10:26:00Z"},
		9:  {"completed (success), on runner mf-s1te-macos-15-old", "", "", "2026-11-02T09:30:00Z"},
		8:  {"completed (cancelled), and no runner had it", "", "", "2026-10-31T08:30:00Z"},
		7:  {"deployment gate", "", "", "2026-11-02T10:30:00Z"},
	} {
		t.Run(fmt.Sprint(id), func(t *testing.T) {
			t.Parallel()
			got := h.get(t, fmt.Sprintf("/api/v1/jobs/%d/explain", id))
			var e struct {
				Reason, Since string
				Job           struct {
					ID   int
					Wait struct{ Code, Reason string }
				}
				Runner struct{ ID string }
			}
			if err := json.Unmarshal([]byte(got.body), &e); err != nil || got.status != http.StatusOK {
				t.Fatalf("%d %v: %s", got.status, err, got.body)
			}
			if e.Job.ID != id || !strings.Contains(e.Reason, c.why) || e.Job.Wait.Code != c.code || e.Runner.ID != c.runner || e.Since != c.since {
				t.Errorf("got %s\nwant %+v", got.body, c)
			}
		})
	}
}

// A job that its machine refused says so wherever an operator looks, and another does not.
func TestRefusedJob(t *testing.T) {
	t.Parallel()
	store := admintest.Sample()
	for i, j := range store.Jobs {
		if j.ID == 9 {
			store.Jobs[i].Conclusion = "failure"
		}
	}
	for i, r := range store.Runners {
		if r.Job == 9 || r.Job == 12 {
			store.Runners[i].JobRefused = "the code comes from eve/demo"
		}
	}
	h := start(t, store)
	for path, want := range map[string]string{
		"jobs/9":            `"refused":"the code comes from eve/demo"`,
		"jobs/12":           `"refused":"the code comes from eve/demo"`,
		"jobs?limit=50":     `"refused":"the code comes from eve/demo"`,
		"jobs/9/explain":    "completed (failure), on runner mf-s1te-macos-15-old, whose guest ended it: the code comes from eve/demo",
		"jobs/12/explain":   "at host mini-1, whose guest ends it: the code comes from eve/demo",
		"runners/r-old":     `"job_refused":"the code comes from eve/demo"`,
		"runners/r-boot":    `"id":"r-boot"`,
		"jobs/11/explain":   "their-own-machine",
		"jobs/8":            `"conclusion":"cancelled"`,
		"runners?limit=50":  `"job_refused":"the code comes from eve/demo"`,
		"jobs?state=queued": `"items"`,
	} {
		got := h.get(t, "/api/v1/"+path)
		if got.status != http.StatusOK || !strings.Contains(got.body, want) || strings.Contains(got.body, "eve/demo") != strings.Contains(want, "eve/demo") {
			t.Errorf("%s: %d %s, want %s", path, got.status, got.body, want)
		}
	}
}

// TestARunnerThatHasGoneIsNoError covers the time between two decisions.
func TestARunnerThatHasGoneIsNoError(t *testing.T) {
	t.Parallel()
	store := admintest.Sample()
	wait := store.Waits[15]
	wait.Runner = "r-forgotten"
	store.Waits[15] = wait
	got := start(t, store).get(t, "/api/v1/jobs/15/explain")
	if got.status != 200 || !strings.Contains(got.body, `"code":"booting"`) || strings.Contains(got.body, `"phase"`) {
		t.Errorf("got %d %s", got.status, got.body)
	}
}
