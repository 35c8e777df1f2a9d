// SPDX-License-Identifier: MIT

package githubapp

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v4"
)

const (
	// A clock that is wrong by more is told of: people and hosts share it.
	clockWrong = time.Minute
	// A refused sign-in is repeated when its answer moved GitHub's time by more: the JWT
	// was of another time.
	clockMoved = 10 * time.Second
)

// clock knows how far GitHub's time is from this machine's: its answers say what time it is
// there. What is signed for GitHub is signed by its time, and what it tells of times to come
// is read by ours, so that a machine whose clock is wrong works all the same.
type clock struct {
	mu    sync.Mutex // guards the rest
	ahead time.Duration
	wrong bool // it is told of
}

// off returns how far GitHub's time is ahead of this machine's; negative: behind.
func (c *clock) off() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ahead
}

// note takes in the date of an answer to what was sent then and has come now. Within what
// the two leave open nothing changes: a date has whole seconds, and an answer takes time.
// Answers of others, such as a proxy on the way, count for nothing.
func (c *clock) note(h http.Header, sent, come time.Time, log *slog.Logger) {
	at, err := http.ParseTime(h.Get("Date"))
	if err != nil || h.Get("X-Github-Request-Id") == "" || h.Get("Age") != "" {
		return
	}
	least, most := at.Sub(come), at.Add(time.Second).Sub(sent)
	c.mu.Lock()
	c.ahead = min(max(c.ahead, least), max(least, most))
	off, was := c.ahead, c.wrong
	c.wrong = off.Abs() > clockWrong
	is := c.wrong
	c.mu.Unlock()
	switch {
	case is && !was:
		log.Warn("this machine's clock is wrong: GitHub's time is reckoned with", slog.String("clock", apart(-off)))
	case was && !is:
		log.Info("this machine's clock agrees with GitHub's again")
	}
}

// here has an answer tell its times by this machine's clock.
func (c *clock) here(h http.Header) {
	off := c.off()
	if reset, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64); err == nil {
		h.Set("X-Ratelimit-Reset", strconv.FormatInt(time.Unix(reset, 0).Add(-off).Unix(), 10))
	}
	if at, err := http.ParseTime(h.Get("Retry-After")); err == nil {
		h.Set("Retry-After", at.Add(-off).UTC().Format(http.TimeFormat))
	}
}

// tokenHere has the answer with an installation's token tell its end by this machine's clock.
func (c *clock) tokenHere(body []byte) []byte {
	off := c.off()
	var token map[string]any
	if off == 0 || json.Unmarshal(body, &token) != nil {
		return body
	}
	text, _ := token["expires_at"].(string)
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return body
	}
	token["expires_at"] = at.Add(-off).UTC().Format(time.RFC3339)
	if changed, err := json.Marshal(token); err == nil {
		return changed
	}
	return body
}

// signedAnew returns a request of the App itself as it is signed now, nil if it cannot be
// sent a second time.
func (a *App) signedAnew(req *http.Request) *http.Request {
	made := req.Clone(req.Context())
	if req.Body != nil && req.Body != http.NoBody {
		if req.GetBody == nil {
			return nil
		}
		body, err := req.GetBody()
		if err != nil {
			return nil
		}
		made.Body = body
	}
	token, err := a.signer.Sign(&jwt.RegisteredClaims{Issuer: strconv.FormatInt(a.id, 10)})
	if err != nil {
		return nil
	}
	made.Header.Set("Authorization", "Bearer "+token)
	return made
}

// apart says where this machine's clock is, seen from GitHub's.
func apart(off time.Duration) string {
	if off < 0 {
		return (-off).Round(time.Second).String() + " behind GitHub's"
	}
	return off.Round(time.Second).String() + " ahead of GitHub's"
}
