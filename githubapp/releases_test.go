// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

func TestOfferedRunners(t *testing.T) {
	o := newOdd(t)
	const files = `[{"filename":"actions-runner-osx-x64-2.336.0.tar.gz"},{"filename":"actions-runner-osx-arm64-2.336.0.tar.gz"},
		{"filename":"actions-runner-win-x64-2.337.0.zip"},{"filename":"actions-runner-osx-x64-latest.tar.gz"},{"filename":null},{}]`
	o.on("GET /orgs/acme/actions/runners/downloads", replying(200, files))
	o.on("GET /repos/acme/rockets/actions/runners/downloads", replying(200, files))
	for _, scope := range []fleet.Scope{org, rocket} {
		got, err := o.app().OfferedRunners(t.Context(), scope)
		if diff := cmp.Diff([]string{"2.336.0", "2.337.0"}, got); diff != "" || err != nil {
			t.Errorf("%s: %v %s", scope, err, diff)
		}
	}
}

func TestRunnerReleases(t *testing.T) {
	o := newOdd(t)
	at := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	o.on("GET /repos/actions/runner/releases", replying(200, `[{"tag_name":"v2.337.0","published_at":"2026-11-01T12:00:00Z"},
		{"tag_name":"v2.338.0","published_at":"2026-11-02T12:00:00Z","prerelease":true},{"tag_name":"v2.338.1","draft":true,"published_at":null},
		{"tag_name":"nightly","published_at":"2026-11-01T12:00:00Z"},{"tag_name":"v2.336.0"}]`))
	got, err := o.app().RunnerReleases(t.Context(), org)
	if diff := cmp.Diff([]fleet.RunnerRelease{{Version: "2.337.0", At: at}}, got); diff != "" || err != nil {
		t.Errorf("%v %s", err, diff)
	}
	_, a, _ := newSim(t) // which lacks them, as an Enterprise Server
	if got, err := a.RunnerReleases(t.Context(), org); got != nil || err != nil {
		t.Errorf("without releases: %v, %v", got, err)
	}
	if got, err := a.OfferedRunners(t.Context(), rocket); len(got) != 1 || err != nil {
		t.Errorf("offered %v, %v", got, err)
	}
}
