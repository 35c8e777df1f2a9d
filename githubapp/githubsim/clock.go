// SPDX-License-Identifier: MIT

package githubsim

import (
	"net/http"
	"time"
)

// clock is GitHub's. A Sim lives by this machine's, and writes and reads every time that it
// shares with others by GitHub's, which is ahead by so much.
type clock struct{ ahead time.Duration }

// now is the time on GitHub's clock.
func (c clock) now() time.Time { return c.of(time.Now()) }

// of is what GitHub's clock showed at a time of this machine's.
func (c clock) of(t time.Time) time.Time { return t.Add(c.ahead) }

func (c clock) stamp(t time.Time) string { return stamp(c.of(t)) }

// stampOrNil is null for a time that has not come.
func (c clock) stampOrNil(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return c.stamp(t)
}

// date has every answer say GitHub's time.
func (c clock) date(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", c.now().UTC().Format(http.TimeFormat))
		next.ServeHTTP(w, r)
	})
}
