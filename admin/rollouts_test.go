// SPDX-License-Identifier: MIT

package admin_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/admin"
	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/fleet"
)

func TestRolloutActs(t *testing.T) {
	t.Parallel()
	digest := "sha256:" + strings.Repeat("b", 64)
	for name, c := range map[string]struct {
		path, body string
		status     int
		call, says string
	}{
		"the tag":           {"macos-15/rollout", "", 200, `take macos-15 "" false`, ""},
		"a digest, at once": {"macos-15/rollout", `{"digest":"` + digest + `","now":true}`, 200, `take macos-15 "` + digest + `" true`, ""},
		"no digest":         {"macos-15/rollout", `{"digest":"v1"}`, 400, "", "digest: want sha256:"},
		"no field":          {"macos-15/rollout", `{"leave":"v1"}`, 400, "", "leave"},
		"promote":           {"macos-15/promote", "", 200, "promote macos-15", ""},
		"promote, a body":   {"macos-15/promote", `{"now":true}`, 400, "", "now"},
		"back":              {"macos-15/rollback", "", 200, `back macos-15 ""`, ""},
		"back from one":     {"macos-15/rollback", `{"leave":"` + digest + `"}`, 200, `back macos-15 "` + digest + `"`, ""},
		"back from none":    {"macos-15/rollback", `{"leave":"b"}`, 400, "", "leave: want sha256:"},
		"no such pool":      {"macos-99/rollback", "", 404, "", "no pool has the name"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			store := admintest.Sample()
			h := start(t, store)
			got := h.send(t, http.MethodPost, "/api/v1/pools/"+c.path, c.body)
			if got.status != c.status || !strings.Contains(got.errorText(), c.says) {
				t.Fatalf("%d %s, want %d %q", got.status, got.body, c.status, c.says)
			}
			var want []string
			if c.call != "" {
				want = []string{c.call}
			}
			if !slices.Equal(store.Rolled(), want) {
				t.Errorf("%q, want %q", store.Rolled(), want)
			}
			if c.status == 200 && (!strings.Contains(got.body, `"current":"gs://images/mac/sequoia@sha256:aaa`) || !strings.Contains(h.log.String(), "rollout changed by an operator")) {
				t.Errorf("%s\n%s", got.body, h.log)
			}
		})
	}
	if got := start(t, admintest.Sample()).get(t, "/api/v1/pools/macos-99"); got.status != 404 {
		t.Errorf("a pool that there is not: %d", got.status)
	}
}

// stubborn refuses whatever is asked of a rollout.
type stubborn struct{ err error }

func (s stubborn) Take(context.Context, string, string, bool) (r fleet.Rollout, err error) {
	return r, s.err
}

func (s stubborn) Promote(context.Context, string) (r fleet.Rollout, err error) { return r, s.err }

func (s stubborn) Back(context.Context, string, string) (r fleet.Rollout, err error) { return r, s.err }

// What cannot be done is the caller's to know; what is the controller's own trouble is not.
func TestRolloutRefusals(t *testing.T) {
	t.Parallel()
	for err, status := range map[error]int{
		fleet.ErrLocalImage: 409, fleet.ErrNoRollout: 409, fleet.ErrNoPrevious: 409, fleet.ErrConflict: 409,
		fleet.ErrNoImage: 502, errors.New("disk is full"): 500,
	} {
		h := start(t, admintest.Sample(), func(c *admin.Config) { c.Roller = stubborn{fmt.Errorf("pool macos-15: %w", err)} })
		for _, act := range []string{"rollout", "promote", "rollback"} {
			got := h.send(t, http.MethodPost, "/api/v1/pools/macos-15/"+act, "")
			if told := strings.Contains(got.errorText(), err.Error()); got.status != status || told != (status != 500) {
				t.Errorf("%s, %v: %d %s", act, err, got.status, got.body)
			}
		}
	}
}
