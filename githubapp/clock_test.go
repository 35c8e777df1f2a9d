// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// A machine whose clock is wrong signs in by GitHub's time, after at most one refusal, and
// reads every time that GitHub tells by its own clock.
func TestWrongClock(t *testing.T) {
	for _, ahead := range []time.Duration{0, 30 * time.Second, -30 * time.Second, 3 * time.Minute, -3 * time.Minute, 25 * time.Minute, -25 * time.Minute, 90 * time.Minute, -90 * time.Minute} {
		t.Run("GitHub is ahead by "+ahead.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log bytes.Buffer
				sim, a, _ := timed(t, githubsim.Options{OneKey: true, Ahead: ahead, Latency: 300 * time.Millisecond}, func(c *githubapp.Config) {
					c.Log = slog.New(slog.NewTextHandler(&log, nil))
				})
				began := time.Now()
				for time.Since(began) < 3*time.Hour { // which is three tokens
					if _, _, err := a.GetRunner(t.Context(), rocket, 1); err != nil {
						t.Fatalf("after %s: %v", time.Since(began), err)
					}
					if _, err := a.Installations(t.Context()); err != nil {
						t.Fatalf("after %s: %v", time.Since(began), err)
					}
					for _, r := range a.Rates() {
						if left := time.Until(r.Reset); left < -2*time.Second || left > time.Hour+2*time.Second {
							t.Fatalf("after %s: the limit of %d begins anew in %s", time.Since(began), r.InstallationID, left)
						}
					}
					time.Sleep(53 * time.Second)
				}
				refused, tokens := 0, 0
				for _, r := range sim.Requests() {
					if r.Status == http.StatusUnauthorized {
						refused++
					}
					if strings.HasSuffix(r.Path, "/access_tokens") && r.Status == http.StatusCreated {
						tokens++
					}
				}
				if refused > 1 || tokens < 3 || tokens > 4 {
					t.Errorf("%d calls were refused, and %d tokens were made", refused, tokens)
				}
				if said, wrong := strings.Count(log.String(), "this machine's clock is wrong"), ahead.Abs() > time.Minute; said > 1 || wrong != (said == 1) {
					t.Errorf("said %d times that the clock is wrong:\n%s", said, log.String())
				}
			})
		})
	}
}

// The clock is set right, and then wrong again, while the App is at work.
func TestClockIsSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		var off time.Duration
		_, a, _ := timed(t, githubsim.Options{}, func(c *githubapp.Config) {
			c.Log = slog.New(slog.NewTextHandler(&log, nil))
			c.Now = func() time.Time { return time.Now().Add(off) }
		})
		for _, off = range []time.Duration{7 * time.Minute, 0, -7 * time.Minute, 20 * time.Minute, 0} {
			if _, err := a.Installations(t.Context()); err != nil {
				t.Errorf("%s off: %v", off, err)
			}
			time.Sleep(time.Second)
		}
		for text, n := range map[string]int{"clock is wrong": 2, "ahead of GitHub's": 1, "behind GitHub's": 1, "agrees with GitHub's again": 2} {
			if got := strings.Count(log.String(), text); got != n {
				t.Errorf("%q is said %d times, want %d:\n%s", text, got, n, log.String())
			}
		}
	})
}

// Where nothing helps, the error says what is wrong with the clock.
func TestRefusedForItsClock(t *testing.T) {
	for _, c := range []struct {
		off  time.Duration
		want string
	}{{12 * time.Minute, "clock is 12m0s behind GitHub's"}, {-12 * time.Minute, "clock is 12m0s ahead of GitHub's"}, {0, "check the App id"}} {
		o := newOdd(t)
		// It is not GitHub that tells this time: nobody reckons with it.
		now := time.Now()
		o.on("GET /app/installations", replying(http.StatusUnauthorized, `{"message":"'Issued at' claim ('iat') must be in the past"}`, "Date", now.Add(c.off).UTC().Format(http.TimeFormat)))
		a := o.app(func(g *githubapp.Config) { g.Now = func() time.Time { return now.Truncate(time.Second) } })
		if _, err := a.Installations(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("GitHub is ahead by %s: %v", c.off, err)
		}
	}
}
