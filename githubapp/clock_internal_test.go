// SPDX-License-Identifier: MIT

package githubapp

import (
	"log/slog"
	"net/http"
	"strconv"
	"testing"
	"time"
)

// What GitHub's time is found to be after answers, each with what it said and how long it took.
func TestClockLearns(t *testing.T) {
	type said struct {
		ahead, took time.Duration
		header      []string
	}
	for name, c := range map[string]struct {
		answers     []said
		least, most time.Duration
	}{
		"a right clock is left alone":  {[]said{{took: 100 * time.Millisecond}, {took: time.Minute}, {ahead: 800 * time.Millisecond}}, 0, 0},
		"a wrong one is known at once": {[]said{{ahead: 5 * time.Minute, took: time.Second}}, 5*time.Minute - 2*time.Second, 5*time.Minute + 2*time.Second},
		"behind":                       {[]said{{ahead: -5 * time.Minute, took: time.Second}}, -5*time.Minute - 2*time.Second, -5*time.Minute + 2*time.Second},
		"slow answers tell less":       {[]said{{ahead: 40 * time.Second, took: time.Minute}}, 0, 41 * time.Second},
		"a proxy's does not count":     {[]said{{ahead: time.Hour, header: []string{"X-Github-Request-Id", ""}}}, 0, 0},
		"a cached one does not count":  {[]said{{ahead: -time.Hour, header: []string{"Age", "3600"}}}, 0, 0},
		"no date":                      {[]said{{ahead: time.Hour, header: []string{"Date", ""}}}, 0, 0},
		"not a date":                   {[]said{{ahead: time.Hour, header: []string{"Date", "soon"}}}, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var k clock
			now := time.Now().Truncate(time.Second)
			for _, a := range c.answers {
				sent, come := now, now.Add(a.took)
				h := http.Header{"Date": {come.Add(a.ahead).UTC().Format(http.TimeFormat)}, "X-Github-Request-Id": {"1"}}
				for i := 0; i < len(a.header); i += 2 {
					h.Set(a.header[i], a.header[i+1])
				}
				k.note(h, sent, come, slog.New(slog.DiscardHandler))
				now = come.Add(time.Minute)
			}
			if got := k.off(); got < c.least || got > c.most {
				t.Errorf("GitHub's time is taken for %s ahead, want %s to %s", got, c.least, c.most)
			}
		})
	}
}

// What an answer tells of times to come is told by this machine's clock.
func TestTimesOfAnswers(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, off := range []time.Duration{0, 10 * time.Minute, -10 * time.Minute} {
		k := clock{ahead: off}
		there, here := at.Add(off), at
		h := http.Header{"Retry-After": {there.Format(http.TimeFormat)}, "X-Ratelimit-Reset": {strconv.FormatInt(there.Unix(), 10)}}
		k.here(h)
		if got := h.Get("Retry-After"); got != here.Format(http.TimeFormat) {
			t.Errorf("%s ahead: retry after %s", off, got)
		}
		if got := h.Get("X-Ratelimit-Reset"); got != strconv.FormatInt(here.Unix(), 10) {
			t.Errorf("%s ahead: the limit begins anew at %s", off, got)
		}
		h = http.Header{"Retry-After": {"60"}, "X-Ratelimit-Reset": {"soon"}}
		k.here(h)
		if h.Get("Retry-After") != "60" || h.Get("X-Ratelimit-Reset") != "soon" {
			t.Errorf("%s ahead: %v", off, h)
		}
		for body, want := range map[string]string{
			`{"token":"a","expires_at":"` + there.Format(time.RFC3339) + `"}`: `{"expires_at":"` + here.Format(time.RFC3339) + `","token":"a"}`,
			`{"token":"a","expires_at":7}`:                                    `{"token":"a","expires_at":7}`,
			`[`:                                                               `[`,
		} {
			if got := string(k.tokenHere([]byte(body))); got != want && !(off == 0 && got == body) {
				t.Errorf("%s ahead: %s became %s", off, body, got)
			}
		}
	}
}
