// SPDX-License-Identifier: MIT

package fleet_test

import (
	"testing"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

func TestHealthOf(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	days := func(n int) time.Time { return now.Add(-time.Duration(n) * 24 * time.Hour) }
	releases := []fleet.RunnerRelease{{Version: "2.337.0", At: days(3)}, {Version: "2.335.1", At: days(80)}, {Version: "2.336.0", At: days(25)}, {Version: "2.336.1", At: days(20)}, {Version: "2.99.0", At: days(900)}}
	for _, c := range []struct {
		name    string
		version string
		refused bool
		list    []fleet.RunnerRelease
		want    fleet.RunnerAge
		since   time.Time
	}{
		{"newest", "2.337.0", false, releases, fleet.RunnerCurrent, time.Time{}},
		{"newer than all", "2.338.0", false, releases, fleet.RunnerCurrent, time.Time{}},
		{"behind for 3 days", "2.336.1", false, releases, fleet.RunnerCurrent, days(3)},
		{"behind for 20 days", "2.336.0", false, releases, fleet.RunnerOld, days(20)},
		{"behind for 25 days", "2.335.1", false, releases, fleet.RunnerOld, days(25)},
		{"behind for 80 days", "2.335.0", false, releases, fleet.RunnerTooOld, days(80)},
		{"numbers, not texts", "2.99.0", false, releases, fleet.RunnerTooOld, days(80)},
		{"refused", "2.337.0", true, releases, fleet.RunnerTooOld, time.Time{}},
		{"refused unnamed", "", true, nil, fleet.RunnerTooOld, time.Time{}},
		{"unnamed", "", false, releases, fleet.RunnerUnknown, time.Time{}},
		{"nothing known", "2.336.0", false, nil, fleet.RunnerUnknown, time.Time{}},
		{"no version", "3.0.0-dev", false, releases, fleet.RunnerCurrent, time.Time{}},
	} {
		p := fleet.PoolRunner{Version: c.version}
		if c.refused {
			p.RefusedAt = now
		}
		h := fleet.HealthOf(p, c.list, now)
		if h.Age != c.want || !h.BehindSince.Equal(c.since) || len(c.list) > 0 && h.Newest != "2.337.0" {
			t.Errorf("%s: %+v", c.name, h)
		}
	}
}
