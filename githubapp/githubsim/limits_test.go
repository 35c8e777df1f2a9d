// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

func TestHourlyLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true})
		token := tokenFor(t, sim, octo, "")
		get := func() *httptest.ResponseRecorder {
			return call(t, sim, "GET", "/repos/octo/demo/actions/runners", token, "")
		}
		for i := range 5000 {
			if i%900 == 899 {
				time.Sleep(time.Minute) // stay within the points of a minute
			}
			want(t, get(), http.StatusOK)
		}
		w := get()
		want(t, w, http.StatusForbidden)
		h := w.Header()
		if h.Get("X-RateLimit-Remaining") != "0" || h.Get("X-RateLimit-Limit") != "5000" || h.Get("X-RateLimit-Used") != "5000" || h.Get("X-RateLimit-Resource") != "core" {
			t.Errorf("headers are %v", h)
		}
		reset, err := strconv.ParseInt(h.Get("X-RateLimit-Reset"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(time.Unix(reset, 0)) + time.Second)
		token = tokenFor(t, sim, octo, "") // the old one has lived its hour too
		want(t, get(), http.StatusOK)
	})
}

func TestPointsOfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true})
		token := tokenFor(t, sim, octo, "")
		write := func() *httptest.ResponseRecorder { // refused, and charged all the same
			return call(t, sim, "POST", "/repos/octo/demo/actions/runs/1/cancel", token, "")
		}
		for range 180 {
			want(t, write(), http.StatusNotFound)
		}
		w := write()
		want(t, w, http.StatusForbidden)
		wait, err := strconv.Atoi(w.Header().Get("Retry-After"))
		if err != nil || wait < 1 || wait > 60 {
			t.Fatalf("Retry-After is %q", w.Header().Get("Retry-After"))
		}
		time.Sleep(time.Duration(wait) * time.Second)
		want(t, write(), http.StatusNotFound)
	})
}

// A prompt GitHub refuses nothing for being asked too often, and makes no key for each
// runner.
func TestPrompt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true, Prompt: true})
		token := tokenFor(t, sim, octo, "")
		keys := map[string]bool{}
		for i := range 1600 { // more than a minute's points and a scope's registrations
			w := call(t, sim, "POST", "/repos/octo/demo/actions/runners/generate-jitconfig", token,
				fmt.Sprintf(`{"name":"r-%d","runner_group_id":1,"labels":["x"]}`, i))
			got := want(t, w, http.StatusCreated)
			keys[string(filesOf(t, got["encoded_jit_config"].(string))[".credentials_rsaparams"])] = true
		}
		if len(keys) != 1 {
			t.Errorf("%d keys", len(keys))
		}
		w := call(t, sim, "GET", "/repos/octo/demo", token, "")
		if left, err := strconv.Atoi(w.Header().Get("X-RateLimit-Remaining")); err != nil || left < 1_000_000 {
			t.Errorf("a client that counts would stop: %q calls are left", w.Header().Get("X-RateLimit-Remaining"))
		}
	})
}

func TestConcurrentCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true, Latency: time.Second})
		token := tokenFor(t, sim, octo, "")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if w := call(t, sim, "GET", "/repos/octo/demo", token, ""); w.Code != http.StatusOK {
					t.Errorf("one of 100 calls: status %d", w.Code)
				}
			})
		}
		synctest.Wait()
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusForbidden)
		wg.Wait()
		want(t, call(t, sim, "GET", "/repos/octo/demo", token, ""), http.StatusOK)
	})
}

func TestUnchangedIsFree(t *testing.T) {
	sim, octo := newSim(t, githubsim.Options{Kind: true})
	token := tokenFor(t, sim, octo, "")
	first := call(t, sim, "GET", "/repos/octo/demo", token, "")
	want(t, first, http.StatusOK)
	req := httptest.NewRequestWithContext(t.Context(), "GET", "/repos/octo/demo", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("If-None-Match", first.Header().Get("ETag"))
	w := httptest.NewRecorder()
	sim.Handler().ServeHTTP(w, req)
	if w.Code != http.StatusNotModified || w.Body.Len() != 0 {
		t.Errorf("status %d, body %q", w.Code, w.Body)
	}
	if got := w.Header().Get("X-RateLimit-Used"); got != "1" {
		t.Errorf("used is %s, want 1", got)
	}
	want(t, call(t, sim, "GET", "/rate_limit", token, ""), http.StatusOK)
	if got := call(t, sim, "GET", "/rate_limit", token, "").Header().Get("X-RateLimit-Used"); got != "1" {
		t.Errorf("asking for the limit is charged: %s", got)
	}
}
