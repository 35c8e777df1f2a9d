// SPDX-License-Identifier: MIT

package show_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/admin"
	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/admin/show"
	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
)

var update = flag.Bool("update", false, "write the tables to testdata instead of comparing them")

const operatorToken = "operator-token-of-the-tests"

// serve runs the real API over the store.
func serve(t *testing.T, store *admintest.Store, pools []fleet.Pool) string {
	t.Helper()
	server, err := admin.New(admin.Config{
		Token: secret.New(operatorToken), Store: store, Explainer: store, Enroller: store, Roller: store, Runners: store, Pools: pools, Now: admintest.Now,
	})
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	server.Routes(router)
	listener := httptest.NewServer(router)
	t.Cleanup(listener.Close)
	return listener.URL
}

func get(t *testing.T, o show.Options) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o.Out, o.Now = &out, admintest.Now
	if o.Token.Empty() {
		o.Token = secret.New(operatorToken)
	}
	err := show.Get(t.Context(), o)
	return out.String(), err
}

func TestTables(t *testing.T) {
	t.Parallel()
	url := serve(t, admintest.Sample(), admintest.Pools())
	for name, o := range map[string]show.Options{
		"jobs":             {Kind: show.KindJobs},
		"jobs-limited":     {Kind: show.KindJobs, Limit: 2, Filters: show.Filters{State: []string{"queued", "waiting"}}},
		"runners":          {Kind: show.KindRunners, Filters: show.Filters{All: true}},
		"runners-wide":     {Kind: show.KindRunners, Output: show.OutputWide},
		"hosts":            {Kind: show.KindHosts},
		"pools":            {Kind: show.KindPools},
		"deliveries":       {Kind: show.KindDeliveries, Filters: show.Filters{Status: "failed"}},
		"timeline":         {Kind: show.KindTimeline, ID: "r-busy"},
		"timeline-empty":   {Kind: show.KindTimeline, ID: "r-new"},
		"explain-queued":   {Kind: show.KindExplain, ID: "15"},
		"explain-running":  {Kind: show.KindExplain, ID: "12"},
		"explain-complete": {Kind: show.KindExplain, ID: "9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o.Server = url
			got, err := get(t, o)
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("testdata", name+".txt")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got; if it is meant: go test ./admin/show -run TestTables -update):\n%s", file, diff)
			}
		})
	}
}

func TestNothingToShow(t *testing.T) {
	t.Parallel()
	url := serve(t, &admintest.Store{}, nil)
	for _, kind := range []string{show.KindJobs, show.KindRunners, show.KindHosts, show.KindPools, show.KindDeliveries} {
		got, err := get(t, show.Options{Server: url, Kind: kind})
		if err != nil || !strings.HasPrefix(got, "no "+kind+": ") || strings.Count(got, "\n") != 1 {
			t.Errorf("%s: got %q, %v", kind, got, err)
		}
		got, err = get(t, show.Options{Server: url, Kind: kind, Output: show.OutputJSON})
		if err != nil || got != "{\n  \"items\": []\n}\n" {
			t.Errorf("%s as JSON: got %q, %v", kind, got, err)
		}
	}
}

func TestJSONIsTheAPIs(t *testing.T) {
	t.Parallel()
	store := admintest.Sample()
	url := serve(t, store, admintest.Pools())
	for name, c := range map[string]struct {
		options show.Options
		golden  string
	}{
		"hosts":    {show.Options{Kind: show.KindHosts}, "hosts.json"},
		"pools":    {show.Options{Kind: show.KindPools}, "pools.json"},
		"jobs":     {show.Options{Kind: show.KindJobs, Limit: 3}, "jobs.json"},
		"timeline": {show.Options{Kind: show.KindTimeline, ID: "r-busy"}, "timeline.json"},
		"explain":  {show.Options{Kind: show.KindExplain, ID: "12"}, "explanation.json"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.options.Server, c.options.Output = url, show.OutputJSON
			got, err := get(t, c.options)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(filepath.Join("..", "testdata", c.golden))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(decoded(t, string(text)), decoded(t, got)); diff != "" {
				t.Errorf("(-API +shown):\n%s", diff)
			}
			if !strings.Contains(got, "\n  ") {
				t.Errorf("the JSON is not indented: %s", got)
			}
		})
	}
}

func decoded(t *testing.T, text string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

// TestPagesAreFollowed has more rows than the largest page.
func TestPagesAreFollowed(t *testing.T) {
	t.Parallel()
	store := &admintest.Store{}
	for i := range 2500 {
		r := fleet.Runner{ID: fleet.RunnerID(fmt.Sprintf("r-%d", i)), Pool: "p", Wanted: fleet.WantUp, Observed: fleet.ObservedBooting, Since: admintest.Now(), CreatedAt: admintest.Now()}
		if i%10 == 0 {
			r.Observed = fleet.ObservedBusy
		}
		store.Runners = append(store.Runners, r)
	}
	url := serve(t, store, nil)
	for name, c := range map[string]struct {
		limit int
		phase []string
		rows  int
		next  bool
		more  bool
	}{
		"by default 100":       {0, nil, 100, true, true},
		"more than a page":     {1500, nil, 1500, false, true},
		"whole pages":          {2000, nil, 2000, true, true},
		"all":                  {2500, nil, 2500, false, false},
		"more than there are":  {9000, nil, 2500, false, false},
		"sparse":               {9000, []string{"busy"}, 250, false, false},
		"sparse and limited":   {30, []string{"busy"}, 30, true, true},
		"limited within pages": {25, []string{"booting"}, 25, false, true},
		"none":                 {100, []string{"idle"}, 0, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := show.Options{Server: url, Kind: show.KindRunners, Limit: c.limit, Output: show.OutputJSON, Filters: show.Filters{Phase: c.phase}}
			text, err := get(t, o)
			if err != nil {
				t.Fatal(err)
			}
			var got struct {
				Items []struct{ ID string }
				Next  string
			}
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
			seen := map[string]bool{}
			for _, r := range got.Items {
				seen[r.ID] = true
			}
			if len(got.Items) != c.rows || len(seen) != c.rows || (got.Next != "") != c.next {
				t.Errorf("%d rows, %d different, next %q; want %d, next %v", len(got.Items), len(seen), got.Next, c.rows, c.next)
			}
			o.Output = show.OutputTable
			if text, err = get(t, o); err != nil || strings.Contains(text, "(there is more") != c.more {
				t.Errorf("%v; the table says that there is more: %v, want %v", err, !c.more, c.more)
			}
		})
	}
}

// TestTextsCannotSteerTheTerminal has what a hostile job could bring about.
func TestTextsCannotSteerTheTerminal(t *testing.T) {
	t.Parallel()
	evil := "a\x1b[2Jb\x07c\nd\te\u202ef\u009b0mg\xff" + strings.Repeat("x", 300)
	store := admintest.Sample()
	for i := range store.Jobs {
		store.Jobs[i].Name, store.Jobs[i].Workflow, store.Jobs[i].Conclusion = evil, evil, evil
	}
	for i := range store.Runners {
		store.Runners[i].Failure, store.Runners[i].RunnerName = evil, evil
	}
	for i := range store.Hosts {
		store.Hosts[i].Degraded, store.Hosts[i].AgentVersion = evil, evil
	}
	for i := range store.Deliveries {
		store.Deliveries[i].Reason, store.Deliveries[i].Event = evil, evil
	}
	store.Moments["r-busy"][0].Detail = evil
	url := serve(t, store, admintest.Pools())
	for _, kind := range show.Kinds() {
		o := show.Options{Server: url, Kind: kind}
		switch kind {
		case show.KindExplain:
			o.ID = "9"
		case show.KindTimeline:
			o.ID = "r-busy"
		}
		got, err := get(t, o)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(got, "\x1b\x07\u202e\u009b\t\r") {
			t.Errorf("%s prints control characters: %q", kind, got)
		}
	}
}
