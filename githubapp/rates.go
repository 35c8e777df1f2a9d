// SPDX-License-Identifier: MIT

package githubapp

import (
	"bytes"
	"cmp"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Rate is GitHub's last word on one of its limits.
type Rate struct {
	AppID          int64
	InstallationID int64  // 0: of the App itself
	Resource       string // GitHub's name of the limit, such as core
	Limit          int
	Remaining      int
	Used           int
	Reset          time.Time
	SeenAt         time.Time
}

type rateKey struct {
	installation int64
	resource     string
}

// maxRates bounds how many limits are remembered: GitHub names about a dozen.
const maxRates = 1000

type rates struct {
	mu   sync.Mutex
	last map[rateKey]Rate
}

// note remembers what an answer says of its limit. Answers of parallel requests
// may arrive in any order; within one period the one that shows more used is newer.
func (r *rates) note(installation int64, h http.Header, now time.Time) {
	remaining, err := strconv.Atoi(h.Get("X-Ratelimit-Remaining"))
	if err != nil {
		return
	}
	rate := Rate{InstallationID: installation, Resource: cmp.Or(h.Get("X-Ratelimit-Resource"), "core"), Remaining: remaining, SeenAt: now}
	if len(rate.Resource) > 64 {
		return
	}
	rate.Limit, _ = strconv.Atoi(h.Get("X-Ratelimit-Limit"))
	rate.Used, _ = strconv.Atoi(h.Get("X-Ratelimit-Used"))
	if reset, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64); err == nil {
		rate.Reset = time.Unix(reset, 0)
	}
	key := rateKey{installation, rate.Resource}
	r.mu.Lock()
	defer r.mu.Unlock()
	old, known := r.last[key]
	if known && rate.Reset.Equal(old.Reset) && rate.Remaining > old.Remaining {
		return
	}
	if !known && len(r.last) >= maxRates {
		return
	}
	if r.last == nil {
		r.last = map[rateKey]Rate{}
	}
	r.last[key] = rate
}

// get returns the last word on one limit.
func (r *rates) get(installation int64, resource string) (Rate, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	rate, ok := r.last[rateKey{installation, resource}]
	return rate, ok
}

// Rates returns the last known state of every limit that GitHub has named.
func (a *App) Rates() []Rate {
	a.rates.mu.Lock()
	defer a.rates.mu.Unlock()
	out := make([]Rate, 0, len(a.rates.last))
	for _, r := range a.rates.last {
		r.AppID = a.id
		out = append(out, r)
	}
	slices.SortFunc(out, func(x, y Rate) int {
		return cmp.Or(cmp.Compare(x.InstallationID, y.InstallationID), cmp.Compare(x.Resource, y.Resource))
	})
	return out
}

// What to wait after an answer about a limit that does not say how long, which
// GitHub asks to be a minute at least, and the longest that is believed: its
// longest period is an hour.
const (
	defaultPause = time.Minute
	longestPause = time.Hour
)

// limitAnswer is an answer about a limit.
type limitAnswer struct {
	primary bool      // the period's calls are used up, of one resource
	until   time.Time // zero: it does not say
}

// rateLimited returns what an answer says of a limit, nil if it is about none.
func rateLimited(resp *http.Response, body []byte, now time.Time) *limitAnswer {
	h := resp.Header
	spent := h.Get("X-Ratelimit-Remaining") == "0"
	switch resp.StatusCode {
	case http.StatusTooManyRequests:
	case http.StatusForbidden: // also GitHub's answer to a missing permission
		if !spent && h.Get("Retry-After") == "" && !namesLimit(body) {
			return nil
		}
	default:
		return nil
	}
	var out limitAnswer
	if at, ok := retryAfter(h.Get("Retry-After"), now); ok {
		out.until = at
	} else if reset, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64); err == nil && spent {
		if at := time.Unix(reset, 0); at.After(now) {
			out.primary, out.until = true, at
		}
	}
	if earliest := now.Add(time.Second); !out.until.IsZero() && out.until.Before(earliest) {
		out.until = earliest
	}
	if latest := now.Add(longestPause); out.until.After(latest) {
		out.until = latest
	}
	return &out
}

// namesLimit reports whether an answer points to GitHub's pages about limits.
func namesLimit(body []byte) bool {
	var p struct {
		DocumentationURL string `json:"documentation_url"`
	}
	return bytes.Contains(body, []byte("documentation_url")) && json.Unmarshal(body, &p) == nil &&
		(strings.Contains(p.DocumentationURL, "rate-limit") || strings.Contains(p.DocumentationURL, "rate_limit"))
}

func retryAfter(s string, now time.Time) (time.Time, bool) {
	if seconds, err := strconv.Atoi(s); err == nil && seconds >= 0 {
		return now.Add(time.Duration(min(seconds, int(longestPause/time.Second))) * time.Second), true
	}
	if at, err := http.ParseTime(s); err == nil {
		return at, true
	}
	return time.Time{}, false
}
