// SPDX-License-Identifier: MIT

package show_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/admin/api"
	"github.com/minifleet/minifleet/admin/show"
)

func TestRollout(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		pool api.Pool
		want string
	}{
		"a name": {api.Pool{Name: "a", Image: "sonoma"}, `pool a: image sonoma
it is a name: each host has it, or not, by that name
`},
		"nothing yet": {api.Pool{Name: "a", Image: "gs://b/mac:v1"}, `pool a: image gs://b/mac:v1
nothing of it is known yet
`},
		"never found": {api.Pool{Name: "a", Image: "gs://b/mac:v1", Rollout: api.Rollout{Error: "404", ErrorAt: ago(time.Minute)}}, `pool a: image gs://b/mac:v1
the tag cannot be read since 1m: 404
`},
		"a canary": {api.Pool{Name: "a", Image: "gs://b/mac:v1", Rollout: api.Rollout{
			Current: "gs://b/mac@sha256:aa", Next: "gs://b/mac@sha256:bb", Previous: "gs://b/mac@sha256:cc", Note: "3 of 3 hosts hold it",
			PromotedAt: ago(48 * time.Hour), StartedAt: ago(time.Hour), TriedAt: ago(30 * time.Minute), CanaryPercent: 10, CanaryFor: "1h0m0s",
			Failures: 1, FailedAt: ago(20 * time.Minute), Failure: "no boot", Hosts: 3, HostsWithCurrent: 3, HostsWithNext: 2, Tagged: "sha256:bb",
		}}, `pool a: image gs://b/mac:v1
current: gs://b/mac@sha256:aa, 2d ago: 3 of 3 hosts hold it; on 3 of 3 hosts
next: gs://b/mac@sha256:bb, 1h ago; on 2 of 3 hosts
canary: 10% of the runners, for 1h0m0s without a failure; its first guest answered 30m ago
failures of next: 1, the last, 20m ago: no boot
previous: gs://b/mac@sha256:cc
`},
		"held": {api.Pool{Name: "a", Image: "gs://b/mac:v1", Rollout: api.Rollout{
			Current: "gs://b/mac@sha256:aa", Held: "gs://b/mac@sha256:bb", Note: "an operator went back", PromotedAt: ago(time.Second), Hosts: 1, Tagged: "sha256:dd",
		}}, `pool a: image gs://b/mac:v1
current: gs://b/mac@sha256:aa, 1s ago: an operator went back; on 0 of 1 hosts
held: gs://b/mac@sha256:bb: not taken again until the tag moves or it is asked for
the tag names: sha256:dd
`},
		"by command, untried": {api.Pool{Name: "a", Image: "gs://b/mac:v1", Rollout: api.Rollout{
			Current: "gs://b/mac@sha256:aa", Next: "gs://b/mac@sha256:bb", Note: "n", CanaryPercent: 5, Hosts: 1,
		}}, `pool a: image gs://b/mac:v1
current: gs://b/mac@sha256:aa: n; on 0 of 1 hosts
next: gs://b/mac@sha256:bb; on 0 of 1 hosts
canary: 5% of the runners, until an operator promotes it; no guest with it has answered yet
`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out bytes.Buffer
			if err := show.Rollout(&out, c.pool, now); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, out.String()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// An operator sees why an image is not on a host.
func TestImagesThatFailed(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := show.Hosts(&out, []api.Host{{ID: "h1", Cache: []api.CachedImage{
		{Digest: "sha256:aaaaaaaaaaaabbbb", State: api.CacheStateFailed, Failure: "there is no room for it"},
		{Digest: "sha256:cccccccccccc", State: api.CacheStateFetching, Failure: "of an earlier try"},
	}}}, time.Now())
	if err != nil || !bytes.Contains(out.Bytes(), []byte("image aaaaaaaaaaaa: there is no room for it")) || bytes.Contains(out.Bytes(), []byte("earlier")) {
		t.Errorf("%v\n%s", err, out.String())
	}
}
