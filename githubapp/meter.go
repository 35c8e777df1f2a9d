// SPDX-License-Identifier: MIT

package githubapp

import (
	"bytes"
	"container/list"
	"context"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/minifleet/minifleet/fleet"
)

// meter is above whatever signs requests. It has calls counted by the meter of their
// context, and asks again for a list that was read before in such a way that an unchanged
// one costs nothing of GitHub's hourly limit.
type meter struct {
	next         http.RoundTripper
	answers      *answers
	installation int64 // whose view of GitHub it is; 0: the App's
}

// remembered marks the calls whose answers are worth keeping: lists that are read again
// and again.
type rememberedKey struct{}

func remembered(ctx context.Context) context.Context {
	return context.WithValue(ctx, rememberedKey{}, true)
}

// RoundTrip implements http.RoundTripper.
func (m *meter) RoundTrip(req *http.Request) (*http.Response, error) {
	watch := fleet.MeterOf(req.Context())
	if watch != nil {
		if err := watch.Begin(req.Context()); err != nil {
			closeBody(req)
			return nil, err
		}
	}
	keep := req.Method == http.MethodGet && req.Context().Value(rememberedKey{}) != nil
	key := strconv.FormatInt(m.installation, 10) + " " + req.URL.String()
	var known *kept
	if keep {
		if known = m.answers.get(key); known != nil {
			req = req.Clone(req.Context())
			req.Header.Set("If-None-Match", known.etag)
		}
	}
	resp, err := m.next.RoundTrip(req)
	unchanged := err == nil && resp.StatusCode == http.StatusNotModified && known != nil
	if watch != nil {
		rate := fleet.Rate{}
		if err == nil {
			rate = rateOf(resp.Header)
		}
		watch.End(unchanged, rate, err == nil)
	}
	switch {
	case err != nil:
		return nil, err
	case unchanged:
		resp.Body.Close()
		resp.StatusCode, resp.Status = http.StatusOK, "200 OK"
		if known.link != "" {
			resp.Header.Set("Link", known.link)
		}
		resp.Header.Set("Content-Type", "application/json; charset=utf-8")
		resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(known.body)), int64(len(known.body))
	case keep && resp.StatusCode == http.StatusOK:
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return nil, err
		}
		m.answers.put(key, &kept{etag: resp.Header.Get("Etag"), link: resp.Header.Get("Link"), body: body})
		resp.Body = io.NopCloser(bytes.NewReader(body))
	}
	return resp, nil
}

// rateOf reads what an answer says of the limit it counts for.
func rateOf(h http.Header) (r fleet.Rate) {
	r.Limit, _ = strconv.Atoi(h.Get("X-Ratelimit-Limit"))
	remaining, err := strconv.Atoi(h.Get("X-Ratelimit-Remaining"))
	reset, resetErr := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64)
	if err != nil || resetErr != nil || r.Limit <= 0 {
		return fleet.Rate{}
	}
	r.Remaining, r.Reset = remaining, time.Unix(reset, 0)
	return r
}

const (
	// The answers of a few thousand idle repositories, or of hundreds of busy ones.
	maxKept = 32 << 20
	// Above this an answer is read anew each time: a page of 100 runs is below it.
	maxKeptEach = 4 << 20
	// What an answer takes beside its body.
	keptOverhead = 512
)

// answers keeps the latest used answers of GitHub that it may say to be unchanged.
type answers struct {
	mu    sync.Mutex // guards the rest
	byKey map[string]*list.Element
	order list.List // of kept, the latest used first
	size  int
}

type kept struct {
	key, etag, link string
	body            []byte
}

func (k *kept) size() int { return len(k.key) + len(k.link) + len(k.body) + keptOverhead }

func (a *answers) get(key string) *kept {
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.byKey[key]
	if e == nil {
		return nil
	}
	a.order.MoveToFront(e)
	return e.Value.(*kept)
}

func (a *answers) put(key string, k *kept) {
	k.key = key
	a.mu.Lock()
	defer a.mu.Unlock()
	if e := a.byKey[key]; e != nil {
		a.drop(e)
	}
	if k.etag == "" || len(k.body) > maxKeptEach {
		return
	}
	if a.byKey == nil {
		a.byKey = map[string]*list.Element{}
	}
	a.byKey[key] = a.order.PushFront(k)
	a.size += k.size()
	for a.size > maxKept {
		a.drop(a.order.Back())
	}
}

// drop forgets an answer. The caller holds mu.
func (a *answers) drop(e *list.Element) {
	k := a.order.Remove(e).(*kept)
	a.size -= k.size()
	delete(a.byKey, k.key)
}
