// SPDX-License-Identifier: MIT

package hosts_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
)

func digest(letter string) string { return "sha256:" + strings.Repeat(letter, 64) }

func image(letter string) string { return "gs://b/mac@" + digest(letter) }

// A host is told which image each runner was placed with, and which ones to fetch.
func TestDesiredImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *hosts.Config) { c.Pools[0].Image = "gs://b/mac:stable" })
	w.must(w.s.ConfigureRollouts(t.Context(), []fleet.Pool{{Name: "mac", Image: "gs://b/mac:stable"}}))
	w.must(w.s.ImageResolved(t.Context(), "gs://b/mac:stable", digest("a")))
	a := w.agent("mini-1", 9)
	before, _ := a.desired("", 0)
	list := []fleet.Prefetch{{Image: image("a"), Hold: true, Turn: time.Now()}, {Image: image("b"), BytesPerSecond: 1 << 20}}
	done, err := w.s.Carry(t.Context(), fleet.Plan{
		Places:  []fleet.Place{{Pool: "mac", Image: image("a"), Host: a.id}},
		Fetches: []fleet.Fetch{{Host: a.id, Images: list}},
	})
	w.must(err)
	if done.Done != 2 {
		t.Fatalf("%+v", done)
	}
	d, got := a.desired("", 0)
	if len(d.Runners) != 1 || d.Runners[0].Image != image("a") || d.Revision != before.Revision+1 {
		t.Errorf("%s", got.body)
	}
	want := []protocol.Prefetch{{Image: image("a"), Hold: true}, {Image: image("b"), BytesPerSecond: 1 << 20}}
	if diff := cmp.Diff(want, d.Images); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if strings.Contains(string(got.body), "turn") {
		t.Errorf("a host is told when its turn began: %s", got.body)
	}
}

func TestReportedImages(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 2)
	send := func(images ...protocol.ImageReport) answer {
		a.sequence++
		return a.do(http.MethodPost, protocol.PathReport, a.credential, protocol.Report{
			Instance: a.instance, Sequence: a.sequence, Facts: facts(2), Images: images,
		}, nil)
	}
	good := protocol.ImageReport{
		Image: "gs://b/mac\x1b[31m", Digest: digest("a"), State: protocol.ImageFetching, DoneBytes: 1, TotalBytes: 3, FetchedBytes: 2, Failure: "503\n",
	}
	if got := send(good); got.status != http.StatusNoContent {
		t.Fatalf("%d %s", got.status, got.body)
	}
	st, err := w.s.State(t.Context())
	w.must(err)
	want := []fleet.CachedImage{{
		Image: "gs://b/mac [31m", Digest: digest("a"), State: fleet.CacheFetching, DoneBytes: 1, TotalBytes: 3, FetchedBytes: 2, Failure: "503 ",
		MovedAt: st.Hosts[0].Cached[0].MovedAt,
	}}
	if diff := cmp.Diff(want, st.Hosts[0].Cached); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	many := make([]protocol.ImageReport, protocol.MaxImages+1)
	for name, edit := range map[string]func(*protocol.ImageReport){
		"no digest":       func(r *protocol.ImageReport) { r.Digest = "" },
		"a short digest":  func(r *protocol.ImageReport) { r.Digest = "sha256:12" },
		"unknown state":   func(r *protocol.ImageReport) { r.State = "asleep" },
		"negative":        func(r *protocol.ImageReport) { r.DoneBytes = -1 },
		"beyond counting": func(r *protocol.ImageReport) { r.TotalBytes = 1<<53 + 1 },
		"fetched":         func(r *protocol.ImageReport) { r.FetchedBytes = -5 },
		"a long failure":  func(r *protocol.ImageReport) { r.Failure = strings.Repeat("x", protocol.MaxText+1) },
		"a long name":     func(r *protocol.ImageReport) { r.Image = strings.Repeat("x", protocol.MaxText+1) },
	} {
		bad := good
		edit(&bad)
		if got := send(bad); got.status != http.StatusBadRequest || got.code() != protocol.CodeBadRequest {
			t.Errorf("%s: %d %s", name, got.status, got.body)
		}
	}
	a.refused(send(good, good), http.StatusBadRequest, protocol.CodeBadRequest)
	a.refused(send(many...), http.StatusBadRequest, protocol.CodeBadRequest)
	for _, state := range fleet.CacheStates() {
		r := good
		r.State = string(state)
		if got := send(r); got.status != http.StatusNoContent {
			t.Errorf("%s: %d %s", state, got.status, got.body)
		}
	}
}
