// SPDX-License-Identifier: MIT

package admin_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/fleet"
)

func TestBadParametersAreNamed(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for name, c := range map[string]struct {
		path  string
		wants []string
	}{
		"limit is a word":         {"/api/v1/jobs?limit=many", []string{"limit", "1 to 1000"}},
		"limit is zero":           {"/api/v1/runners?limit=0", []string{"limit", "1 to 1000"}},
		"limit is negative":       {"/api/v1/hosts?limit=-1", []string{"limit", "1 to 1000"}},
		"limit is too large":      {"/api/v1/pools?limit=1001", []string{"limit", "1 to 1000"}},
		"limit overflows":         {"/api/v1/pools?limit=99999999999999999999", []string{"limit", "1 to 1000"}},
		"limit is a fraction":     {"/api/v1/pools?limit=1.5", []string{"limit", "1 to 1000"}},
		"limit is empty":          {"/api/v1/pools?limit=", []string{"limit"}},
		"limit twice":             {"/api/v1/jobs?limit=1&limit=2", []string{"limit", "2 times"}},
		"state twice":             {"/api/v1/jobs?state=queued&state=waiting", []string{"state", "2 times"}},
		"repository twice":        {"/api/v1/jobs?repository=a/b&repository=c/d", []string{"repository", "2 times"}},
		"cursor of nobody":        {"/api/v1/jobs?cursor=xyz", []string{"cursor", "next"}},
		"cursor of no pool":       {"/api/v1/pools?cursor=..%2F", []string{"cursor", "next"}},
		"cursor is long":          {"/api/v1/pools?cursor=" + strings.Repeat("a", 600), []string{"cursor", "next"}},
		"unknown job state":       {"/api/v1/jobs?state=queued,done", []string{"state", `"done"`, "waiting, queued, in_progress or completed"}},
		"state is a comma":        {"/api/v1/jobs?state=,", []string{"state", "waiting, queued"}},
		"unknown host state":      {"/api/v1/hosts?state=offline", []string{"state", `"offline"`, "online or unreachable"}},
		"unknown phase":           {"/api/v1/runners?phase=busy,sleeping", []string{"phase", `"sleeping"`, "requested, placed"}},
		"unknown delivery status": {"/api/v1/deliveries?status=lost", []string{"status", `"lost"`, "processed, ignored or failed"}},
		"repository is an owner":  {"/api/v1/jobs?repository=acme", []string{"repository", "owner/name"}},
		"repository of parts":     {"/api/v1/pools?repository=a/b/c", []string{"repository", "owner/name"}},
		"run is zero":             {"/api/v1/jobs?run_id=0", []string{"run_id", "from 1"}},
		"run is a word":           {"/api/v1/jobs?run_id=x", []string{"run_id", "from 1"}},
		"pool has a space":        {"/api/v1/runners?pool=a%20b", []string{"pool", "lower-case"}},
		"all is a word":           {"/api/v1/runners?all=maybe", []string{"all", "true or false"}},
		"misspelt filter":         {"/api/v1/jobs?stat=queued", []string{`"stat"`, "state, repository, run_id, limit or cursor"}},
		"filter where none is":    {"/api/v1/version?limit=1", []string{`"limit"`, "takes none"}},
		"broken escape":           {"/api/v1/jobs?state=%zz", []string{"query string"}},
		"semicolon":               {"/api/v1/jobs?state=queued;limit=1", []string{"query string"}},
		"job id is a word":        {"/api/v1/jobs/next", []string{"id", "whole number"}},
		"job id is zero":          {"/api/v1/jobs/0", []string{"id", "whole number"}},
		"job id overflows":        {"/api/v1/jobs/9223372036854775808/explain", []string{"id", "whole number"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := h.get(t, c.path)
			if got.status != http.StatusBadRequest {
				t.Fatalf("status %d, want 400: %s", got.status, got.body)
			}
			for _, want := range c.wants {
				if !strings.Contains(got.errorText(), want) {
					t.Errorf("the error %q does not say %q", got.errorText(), want)
				}
			}
		})
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for name, c := range map[string]struct {
		path string
		want []string
	}{
		"all jobs":               {"/api/v1/jobs", []string{"16", "15", "14", "13", "12", "11", "10", "9", "8", "7"}},
		"one state":              {"/api/v1/jobs?state=queued", []string{"15", "14", "13"}},
		"two states":             {"/api/v1/jobs?state=waiting,completed", []string{"16", "9", "8", "7"}},
		"repository in any case": {"/api/v1/jobs?repository=ACME/Web", []string{"14"}},
		"run":                    {"/api/v1/jobs?run_id=4", []string{"7"}},
		"present runners":        {"/api/v1/runners", []string{"r-busy", "r-boot", "r-fail", "r-new"}},
		"runners of the past":    {"/api/v1/runners?all=true", []string{"r-busy", "r-boot", "r-fail", "r-new", "r-old"}},
		"runners of a pool":      {"/api/v1/runners?pool=linux", []string{"r-fail", "r-new"}},
		"runners by host id":     {"/api/v1/runners?host=h2", []string{"r-fail"}},
		"runners by host name":   {"/api/v1/runners?host=rack-2", []string{"r-fail"}},
		"runners of no host":     {"/api/v1/runners?host=rack-9", []string{}},
		"one phase":              {"/api/v1/runners?phase=failed", []string{"r-fail"}},
		"two phases":             {"/api/v1/runners?phase=requested,booting", []string{"r-boot", "r-new"}},
		"all hosts":              {"/api/v1/hosts", []string{"h1", "h2", "h3"}},
		"hosts that answer":      {"/api/v1/hosts?state=online", []string{"h1"}},
		"hosts that do not":      {"/api/v1/hosts?state=unreachable", []string{"h2", "h3"}},
		"all pools":              {"/api/v1/pools", []string{"linux", "macos-15"}},
		"pools of a repository":  {"/api/v1/pools?repository=Zeta/Tool", []string{"macos-15"}},
		"pools of no repository": {"/api/v1/pools?repository=zeta/other", []string{}},
		"failed deliveries":      {"/api/v1/deliveries?status=failed", []string{"7f0e"}},
		"all deliveries":         {"/api/v1/deliveries", []string{"7f0e", "6a11"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// The same rows must come in one page and in pages of one row.
			for _, path := range []string{c.path, withParameter(c.path, "limit=1")} {
				got := []string{}
				for cursor, pages := "", 0; pages == 0 || cursor != ""; pages++ {
					if pages > 20 {
						t.Fatalf("%s does not end", path)
					}
					at := path
					if cursor != "" {
						at = withParameter(path, "cursor="+cursor)
					}
					var ids []string
					ids, cursor = rowsOf(t, h.get(t, at))
					got = append(got, ids...)
				}
				if diff := cmp.Diff(c.want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", path, diff)
				}
			}
		})
	}
}

func withParameter(path, parameter string) string {
	if strings.Contains(path, "?") {
		return path + "&" + parameter
	}
	return path + "?" + parameter
}

// rowsOf returns what identifies the rows of a page, and the next cursor.
func rowsOf(t *testing.T, a answer) (ids []string, next string) {
	t.Helper()
	var page struct {
		Items []struct {
			ID         any
			GUID, Name string
		}
		Next string
	}
	d := json.NewDecoder(strings.NewReader(a.body))
	d.UseNumber()
	if err := d.Decode(&page); err != nil || a.status != 200 || page.Items == nil {
		t.Fatalf("status %d, %v: %s", a.status, err, a.body)
	}
	for _, item := range page.Items {
		switch id := item.ID.(type) {
		case json.Number:
			ids = append(ids, id.String())
		case string:
			ids = append(ids, id)
		default:
			ids = append(ids, item.GUID+item.Name)
		}
	}
	return ids, page.Next
}

func TestEnrolmentTokens(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		body, contentType string
		status            int
		want              admintest.Enrolment
		wantError         string
	}{
		"no body":              {"", "", 201, admintest.Enrolment{TTL: time.Hour, Uses: 1}, ""},
		"empty object":         {"{}", "application/json", 201, admintest.Enrolment{TTL: time.Hour, Uses: 1}, ""},
		"all":                  {`{"host_name":"mini-9","ttl_seconds":60}`, "application/json; charset=utf-8", 201, admintest.Enrolment{HostName: "mini-9", TTL: time.Minute, Uses: 1}, ""},
		"for many hosts":       {`{"uses":10000}`, "application/json", 201, admintest.Enrolment{TTL: time.Hour, Uses: 10000}, ""},
		"for too many":         {`{"uses":10001}`, "application/json", 400, admintest.Enrolment{}, "1 to 10000"},
		"for none":             {`{"uses":0}`, "application/json", 400, admintest.Enrolment{}, "1 to 10000"},
		"many of one name":     {`{"host_name":"mini-9","uses":2}`, "application/json", 400, admintest.Enrolment{}, "host_name"},
		"longest":              {`{"ttl_seconds":604800}`, "application/json", 201, admintest.Enrolment{TTL: 7 * 24 * time.Hour, Uses: 1}, ""},
		"too short":            {`{"ttl_seconds":59}`, "application/json", 400, admintest.Enrolment{}, "60 to 604800"},
		"zero":                 {`{"ttl_seconds":0}`, "application/json", 400, admintest.Enrolment{}, "60 to 604800"},
		"too long":             {`{"ttl_seconds":604801}`, "application/json", 400, admintest.Enrolment{}, "60 to 604800"},
		"wraps around":         {`{"ttl_seconds":18446744074}`, "application/json", 400, admintest.Enrolment{}, "60 to 604800"},
		"bad name":             {`{"host_name":"Mini 9"}`, "application/json", 400, admintest.Enrolment{}, "host_name"},
		"unknown field":        {`{"hostname":"mini-9"}`, "application/json", 400, admintest.Enrolment{}, "hostname"},
		"wrong type":           {`{"ttl_seconds":"60"}`, "application/json", 400, admintest.Enrolment{}, "ttl_seconds"},
		"a list":               {`[]`, "application/json", 400, admintest.Enrolment{}, "body"},
		"truncated":            {`{"host_name":`, "application/json", 400, admintest.Enrolment{}, "body"},
		"two objects":          {`{}{}`, "application/json", 400, admintest.Enrolment{}, "more after"},
		"form":                 {`host_name=mini-9`, "application/x-www-form-urlencoded", 415, admintest.Enrolment{}, "application/json"},
		"larger than the rest": {`{"host_name":"` + strings.Repeat("a", 70<<10) + `"}`, "application/json", 413, admintest.Enrolment{}, "65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := start(t, admintest.Sample())
			got := h.send(t, http.MethodPost, "/api/v1/enrolment-tokens", c.body, "Content-Type", c.contentType)
			if got.status != c.status || !strings.Contains(got.errorText(), c.wantError) {
				t.Fatalf("got %d %s, want %d with %q", got.status, got.body, c.status, c.wantError)
			}
			var want []admintest.Enrolment
			if c.status == 201 {
				want = append(want, c.want)
			}
			if diff := cmp.Diff(want, h.store.Enrolments()); diff != "" {
				t.Errorf("enrolments (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRemoveHost(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for path, want := range map[string]int{"/api/v1/hosts/h9": 404, "/api/v1/hosts/mini-1": 404, "/api/v1/hosts/%2E%2E": 404, "/api/v1/hosts/h2": 204} {
		if got := h.send(t, http.MethodDelete, path, ""); got.status != want {
			t.Errorf("DELETE %s: got %d %s, want %d", path, got.status, got.body, want)
		}
	}
	if diff := cmp.Diff([]fleet.HostID{"h2"}, h.store.Removed()); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if !strings.Contains(h.log.String(), `msg="host removed by an operator" host=h2 name=rack-2`) {
		t.Errorf("the removal is not logged:\n%s", h.log)
	}
}

func TestUnknownIDs(t *testing.T) {
	t.Parallel()
	h := start(t, admintest.Sample())
	for _, path := range []string{"/api/v1/jobs/99", "/api/v1/jobs/99/explain", "/api/v1/runners/r-none", "/api/v1/runners/r-none/timeline"} {
		if got := h.get(t, path); got.status != 404 || !strings.Contains(got.errorText(), "is not known") {
			t.Errorf("%s: got %d %s, want 404", path, got.status, got.body)
		}
	}
}

// FuzzQuery sends any query string to every listing: the answer is a page or a
// refusal with a reason, never a fault.
func FuzzQuery(f *testing.F) {
	h := start(f, admintest.Sample())
	f.Fuzz(func(t *testing.T, query string) {
		for _, path := range []string{"jobs", "runners", "hosts", "pools", "deliveries"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/api/v1/"+path, nil)
			if err != nil {
				t.Fatal(err)
			}
			req.URL.RawQuery = strings.Map(func(r rune) rune {
				if r <= ' ' || r == 0x7f || r == '#' {
					return -1 // what a request line cannot carry
				}
				return r
			}, query)
			req.Header.Set("Authorization", "Bearer "+operatorToken)
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Skip("the client itself refuses it")
			}
			var body struct {
				Items []any
				Error string
			}
			err = json.NewDecoder(resp.Body).Decode(&body)
			resp.Body.Close()
			good := resp.StatusCode == 200 && body.Items != nil
			refused := resp.StatusCode == 400 && body.Error != ""
			if err != nil || good == refused {
				t.Errorf("%s?%s: status %d, %v, %+v", path, req.URL.RawQuery, resp.StatusCode, err, body)
			}
		}
	})
}
