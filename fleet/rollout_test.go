// SPDX-License-Identifier: MIT

package fleet_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
)

const place = "gs://bucket/images/mac"

var (
	noon   = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	before = noon.Add(-time.Hour)
)

// digest is one of a few, each a letter.
func digest(letter string) string {
	if letter == "" {
		return ""
	}
	return "sha256:" + strings.Repeat(letter, 64)
}

// at is an image of the place, "" for no letter.
func at(letter string) string {
	if letter == "" {
		return ""
	}
	return place + "@" + digest(letter)
}

// shape is a rollout in four letters: current, next, previous, held. "-" is none.
func shape(r fleet.Rollout) string {
	var b strings.Builder
	for _, image := range []string{r.Current, r.Next, r.Previous, r.Held} {
		if image == "" {
			b.WriteByte('-')
			continue
		}
		b.WriteByte(fleet.ImageDigest(image)[len("sha256:")])
	}
	return b.String()
}

func shaped(s string) fleet.Rollout {
	letter := func(i int) string { return at(strings.Trim(s[i:i+1], "-")) }
	r := fleet.Rollout{Pool: "mac", Reference: place + ":stable", Current: letter(0), Next: letter(1), Previous: letter(2), Held: letter(3)}
	if r.Next != "" {
		r.StartedAt, r.TriedAt, r.Failures, r.FailedAt, r.Failure = before, before, 2, before, "broke"
	}
	return r
}

// events are all that can happen to a rollout. The tag named c when it was read last.
var events = []struct {
	name string
	do   func(fleet.Rollout) (fleet.Rollout, error)
}{
	{"tag a", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Resolved(digest("a"), noon), nil }},
	{"tag b", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Resolved(digest("b"), noon), nil }},
	{"tag c", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Resolved(digest("c"), noon), nil }},
	{"tag d", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Resolved(digest("d"), noon), nil }},
	{"ask b", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Asked(digest("b"), false, noon), nil }},
	{"promote", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Promoted("why", noon) }},
	{"back", func(r fleet.Rollout) (fleet.Rollout, error) { return r.WentBack("why", noon) }},
	{"pin d", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Configured(at("d"), noon), nil }},
	{"tag text", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Configured(place+":next", noon), nil }},
	{"failed", func(r fleet.Rollout) (fleet.Rollout, error) { return r.Unresolved("403", noon), nil }},
}

// Every shape that a rollout can have, and what each event makes of it: "!" is refused.
func TestRolloutTable(t *testing.T) {
	t.Parallel()
	table := map[string][]string{
		//        tag a   tag b   tag c   tag d   ask b   promote back    pin d   text    failed
		"----": {"a---", "b---", "c---", "d---", "b---", "!", "!", "d---", "----", "----"},
		"a---": {"a---", "ab--", "a---", "ad--", "ab--", "!", "!", "ad--", "a---", "a---"},
		"ab--": {"a---", "ab--", "ab--", "ad--", "ab--", "b-a-", "a--b", "ad--", "ab--", "ab--"},
		"a-b-": {"a-b-", "abb-", "a-b-", "adb-", "abb-", "!", "b--a", "adb-", "a-b-", "a-b-"},
		"adb-": {"a-b-", "abb-", "adb-", "adb-", "abb-", "d-a-", "a-bd", "adb-", "adb-", "adb-"},
		"a--b": {"a---", "a--b", "a--b", "ad--", "ab--", "!", "!", "ad--", "a---", "a--b"},
		"a-bd": {"a-b-", "abb-", "a-bd", "a-bd", "abb-", "!", "b--a", "adb-", "a-b-", "a-bd"},
		"a--d": {"a---", "ab--", "a--d", "a--d", "ab--", "!", "!", "ad--", "a---", "a--d"},
	}
	reached := map[string]bool{}
	for from, row := range table {
		for i, e := range events {
			was := shaped(from)
			was.Tagged = digest("c")
			is, err := e.do(was)
			got := shape(is)
			if err != nil {
				got = "!"
				if diff := cmp.Diff(was, is); diff != "" {
					t.Errorf("%s, %s: it is refused and changes all the same:\n%s", from, e.name, diff)
				}
			}
			if got != row[i] {
				t.Errorf("%s, %s: %s, want %s", from, e.name, got, row[i])
			}
			reached[got] = true
			for _, broken := range wrong(was, is) {
				t.Errorf("%s, %s: %s", from, e.name, broken)
			}
		}
	}
	for s := range reached {
		if table[s] == nil && s != "!" && !known(s) {
			t.Errorf("shape %s can be reached and is in no row", s)
		}
	}
}

// known are shapes that are the like of one in the table by other letters.
func known(s string) bool {
	like := func(s string) string {
		names := map[byte]byte{'-': '-'}
		out := []byte(s)
		for i := range out {
			if names[out[i]] == 0 {
				names[out[i]] = byte('a' + len(names) - 1)
			}
			out[i] = names[out[i]]
		}
		return string(out)
	}
	switch like(s) {
	case "----", "a---", "ab--", "a-b-", "abc-", "abb-", "a--b", "a-bc":
		return true
	}
	return false
}

// wrong says which rule of every rollout does not hold after an event.
func wrong(was, is fleet.Rollout) (out []string) {
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if was.Current != "" && is.Current == "" {
		bad("nothing serves any more")
	}
	if fleet.SameImage(is.Current, is.Next) || fleet.SameImage(is.Current, is.Held) || fleet.SameImage(is.Next, is.Held) {
		bad("one image has two places: %s", shape(is))
	}
	if is.Next == "" && (!is.StartedAt.IsZero() || !is.TriedAt.IsZero() || is.Failures != 0 || is.Failure != "") {
		bad("nothing is rolled out and something is left of it")
	}
	if is.Next != "" && is.StartedAt.IsZero() {
		bad("the rollout began at no time")
	}
	if is.Next != "" && !fleet.SameImage(is.Next, was.Next) && is.Failures != 0 {
		bad("failures of another image count")
	}
	for _, image := range []string{is.Current, is.Next, is.Previous, is.Held} {
		if image != "" && !fleet.ValidDigest(fleet.ImageDigest(image)) {
			bad("%q is not a digest's", image)
		}
	}
	return out
}

// A tag that did not move starts nothing, so that what an operator decided stands; one
// that moved to another image, and then back to what was left, does.
func TestHeldUntilTheTagMoves(t *testing.T) {
	t.Parallel()
	r := fleet.NewRollout("mac", place+":stable", noon).Resolved(digest("a"), noon).Resolved(digest("b"), noon)
	r, err := r.Promoted("ready", noon)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = r.WentBack("worse", noon); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r = r.Resolved(digest("b"), noon); shape(r) != "a--b" {
			t.Fatalf("the tag did not move and the rollout is %s", shape(r))
		}
	}
	if again := r.Asked(digest("b"), true, noon); shape(again) != "ab--" {
		t.Errorf("asked for: %s", shape(again))
	}
	if r = r.Resolved(digest("c"), noon); shape(r) != "ac--" {
		t.Fatalf("the tag moved: %s", shape(r))
	}
	if r = r.Resolved(digest("b"), noon); shape(r) != "ab--" {
		t.Errorf("the tag moved back to what was left once: %s", shape(r))
	}
}

// A failure to read the tag is kept with its beginning, and forgotten when it is read.
func TestUnresolvedKeepsServing(t *testing.T) {
	t.Parallel()
	r := fleet.NewRollout("mac", place+":stable", noon).Resolved(digest("a"), noon)
	r = r.Unresolved("403", noon).Unresolved("404", noon.Add(time.Hour))
	if r.Error != "404" || !r.ErrorAt.Equal(noon) || r.Current != at("a") {
		t.Errorf("%+v", r)
	}
	if r = r.Resolved(digest("a"), noon); r.Error != "" || !r.ErrorAt.IsZero() {
		t.Errorf("the tag is read and there is still an error: %+v", r)
	}
}

func TestRolloutCountsItsOwnFailuresOnly(t *testing.T) {
	t.Parallel()
	r := shaped("ab--")
	r.Failures = 0
	if same, counts := r.Failed(at("a"), "x", noon); counts || same != r {
		t.Error("a failure of what serves counts against what is tried")
	}
	if is, counts := r.Failed(at("b"), "x", noon); !counts || is.Failures != 1 || is.Failure != "x" || !is.FailedAt.Equal(noon) {
		t.Errorf("%+v", is)
	}
	r.TriedAt = time.Time{}
	if !r.Tried(at("a"), noon).TriedAt.IsZero() || !r.Tried(at("b"), noon).TriedAt.Equal(noon) {
		t.Error("who has tried it?")
	}
	if _, err := shaped("a---").Acted("dance", "", noon); err == nil {
		t.Error("an act that there is not")
	}
	if _, err := shaped("a---").Acted(fleet.ActPromote, "", noon); !errors.Is(err, fleet.ErrNoRollout) {
		t.Error(err)
	}
	if _, err := shaped("a---").Acted(fleet.ActBack, "", noon); !errors.Is(err, fleet.ErrNoPrevious) {
		t.Error(err)
	}
}

// The same content from another place is nothing new: what serves has its new name.
func TestMovedBucket(t *testing.T) {
	t.Parallel()
	r := shaped("a---").Configured("gs://other/mac:stable", noon).Resolved(digest("a"), noon)
	if r.Next != "" || r.Current != "gs://other/mac@"+digest("a") {
		t.Errorf("%+v", r)
	}
}

func TestImageNames(t *testing.T) {
	t.Parallel()
	d := digest("a")
	for _, c := range []struct{ image, at, key, short string }{
		{"sonoma", "", "sonoma", "sonoma"},
		{"gs://b/p/mac", "gs://b/p/mac@" + d, "", "mac"},
		{"gs://b/p/mac:v1", "gs://b/p/mac@" + d, "", "mac:v1"},
		{"gs://b/p/mac:v1@" + d, "gs://b/p/mac@" + d, d, "mac@aaaaaaaaaaaa"},
		{"oci://localhost:5000/mac", "oci://localhost:5000/mac@" + d, "", "mac"},
		{"file:///srv/mac@" + d, "file:///srv/mac@" + d, d, "mac@aaaaaaaaaaaa"},
	} {
		if c.at != "" && fleet.ImageAt(c.image, d) != c.at {
			t.Errorf("%s at %s: %s, want %s", c.image, d, fleet.ImageAt(c.image, d), c.at)
		}
		if got := fleet.ImageKey(c.image); got != c.key {
			t.Errorf("key of %s: %q, want %q", c.image, got, c.key)
		}
		if got := fleet.ImageShort(c.image); got != c.short {
			t.Errorf("%s in short: %q, want %q", c.image, got, c.short)
		}
	}
	if fleet.SameImage("", "") || fleet.SameImage("gs://b/mac@"+d, "mac") || !fleet.SameImage("gs://b/mac@"+d, "oci://r/mac@"+d) {
		t.Error("same image?")
	}
}

func TestPoolImages(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		image  string
		canary fleet.Canary
		wrong  string // "" is good
	}{
		{"sonoma", fleet.Canary{}, ""},
		{"gs://b/mac:v1", fleet.Canary{Percent: 10, For: time.Hour}, ""},
		{"oci://ghcr.io/x/mac@" + digest("a"), fleet.Canary{}, ""},
		{"Sonoma", fleet.Canary{}, "want a name"},
		{"s3://b/mac", fleet.Canary{}, "begins with gs://"},
		{"gs://", fleet.Canary{}, "has a place and a name"},
		{"gs://b/m ac", fleet.Canary{}, "no spaces"},
		{"gs://b/mac@sha256:12", fleet.Canary{}, "64 hex digits"},
		{"gs://b/" + strings.Repeat("m", 600), fleet.Canary{}, "longer than"},
		{"sonoma", fleet.Canary{Percent: 10}, "one version"},
		{"gs://b/mac", fleet.Canary{Percent: 101}, "0 to 100"},
		{"gs://b/mac", fleet.Canary{For: time.Hour}, "set that too"},
		{"gs://b/mac", fleet.Canary{Percent: 1, For: -1}, "negative"},
	} {
		p := fleet.Pool{Name: "mac", Labels: fleet.NewLabels("a"), Scopes: []fleet.Scope{{Owner: "acme"}}, Image: c.image, Canary: c.canary}
		err := p.Validate()
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%.60s %+v: %v, want %q", c.image, c.canary, err, c.wrong)
		}
	}
}
