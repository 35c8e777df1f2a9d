// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

func TestRegister(t *testing.T) {
	for name, scope := range map[string]fleet.Scope{"organization": org, "repository": rocket} {
		for _, ephemeral := range []any{"True", "true", true} {
			t.Run(fmt.Sprintf("%s %v", name, ephemeral), func(t *testing.T) {
				o := newOdd(t)
				want := config("s1-mac-abc", ephemeral)
				o.on(orgMint, replying(201, registered(359, "s1-mac-abc", want)))
				o.on(repoMint, replying(201, registered(359, "s1-mac-abc", want)))
				got, err := o.app().Register(t.Context(), ask(scope))
				if err != nil {
					t.Fatal(err)
				}
				if got.ID != 359 || got.Config.Reveal() != want || strings.Contains(fmt.Sprintf("%+v", got), want) {
					t.Errorf("got %+v", got)
				}
				var sent struct {
					Name    string   `json:"name"`
					GroupID int64    `json:"runner_group_id"`
					Labels  []string `json:"labels"`
					Folder  string   `json:"work_folder"`
				}
				if err := json.Unmarshal([]byte(o.bodies[len(o.bodies)-1]), &sent); err != nil {
					t.Fatal(err)
				}
				if sent.Name != "s1-mac-abc" || sent.GroupID != 1 || sent.Folder != "_work" || strings.Join(sent.Labels, ",") != "self-hosted,macOS" {
					t.Errorf("sent %+v", sent)
				}
			})
		}
	}
}

// Each answer has its kind, GitHub is asked once, and only what may have been
// done is uncertain.
func TestRegisterErrors(t *testing.T) {
	drop := func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			conn.Close()
		}
	}
	half := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(201)
		w.Write([]byte(`{"runner":{"id":359`))
	}
	for _, c := range []struct {
		name   string
		answer http.HandlerFunc
		kind   error
		text   string
	}{
		{"name taken", replying(409, `{"message":"Already exists - A runner with the name *** already exists."}`), githubapp.ErrNameTaken, "409"},
		{"bad labels", replying(422, `{"message":"Invalid","errors":[{"field":"labels","code":"too_long"}]}`), githubapp.ErrRefused, "labels too_long"},
		{"no permission", replying(403, `{"message":"Resource not accessible by integration"}`), githubapp.ErrRefused, "permissions"},
		{"not found", replying(404, `{"message":"Not Found"}`), githubapp.ErrRefused, "404"},
		{"bad request", replying(400, `not json`, "X-GitHub-Request-Id", "AB:12"), githubapp.ErrRefused, "AB:12"},
		{"redirect away", replying(302, ``, "Location", "https://example.invalid/"), githubapp.ErrRefused, "302"},
		{"server error", replying(500, `{"message":"oops"}`), githubapp.ErrUncertain, "500"},
		{"bad gateway", replying(502, `<html>`), githubapp.ErrUncertain, "502"},
		{"put off", replying(202, `{}`), githubapp.ErrUncertain, "202"},
		{"connection closed", drop, githubapp.ErrUncertain, ""},
		{"answer cut off", half, githubapp.ErrUncertain, ""},
		{"malformed JSON", replying(201, `{"runner":`), githubapp.ErrUncertain, ""},
		{"wrong types", replying(201, `{"runner":{"id":"x"}}`), githubapp.ErrUncertain, ""},
		{"no config", replying(201, `{"runner":{"id":359}}`), githubapp.ErrUncertain, "lacks"},
		{"no runner", replying(201, `{"encoded_jit_config":"eA=="}`), githubapp.ErrUncertain, "lacks"},
		{"null", replying(201, `null`), githubapp.ErrUncertain, "lacks"},
		{"huge answer", replying(201, strings.Repeat(" ", 9<<20)), githubapp.ErrUncertain, "larger than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOdd(t)
			o.on(repoMint, c.answer)
			_, err := o.app().Register(t.Context(), ask(rocket))
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v and %q", err, c.kind, c.text)
			}
			if errors.Is(err, githubapp.ErrUncertain) != errors.Is(c.kind, githubapp.ErrUncertain) {
				t.Errorf("uncertain: %v", err)
			}
			if n := o.count("POST", "generate-jitconfig"); n != 1 {
				t.Errorf("asked %d times", n)
			}
			if len(err.Error()) > 1000 || strings.Contains(err.Error(), "ghs_") {
				t.Errorf("error text: %v", err)
			}
		})
	}
}

// late carries out a registration and keeps the answer until the request's time
// is over.
type late struct{ http.RoundTripper }

func (l late) RoundTrip(req *http.Request) (*http.Response, error) {
	if !strings.HasSuffix(req.URL.Path, "/generate-jitconfig") {
		return l.RoundTripper.RoundTrip(req)
	}
	resp, err := l.RoundTripper.RoundTrip(req.WithContext(context.WithoutCancel(req.Context())))
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	<-req.Context().Done()
	return nil, req.Context().Err()
}

func TestRegisterTimesOutAfterSuccess(t *testing.T) {
	o := newOdd(t)
	o.on(orgMint, replying(201, registered(359, "s1-mac-abc", config("s1-mac-abc", true))))
	synctest.Test(t, func(t *testing.T) {
		o.t = t
		a := o.app(func(c *githubapp.Config) { c.Transport, c.MintTimeout = late{direct{o}}, 3*time.Second })
		if _, _, err := a.GetRunner(t.Context(), org, 1); err != nil { // so that a token is there
			t.Fatal(err)
		}
		_, err := a.Register(t.Context(), ask(org))
		if !errors.Is(err, githubapp.ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "in time") {
			t.Errorf("error %v", err)
		}
		if n := o.count("POST", "generate-jitconfig"); n != 1 {
			t.Errorf("asked %d times", n)
		}
	})
}

func TestCallerGivesUpAfterSending(t *testing.T) {
	o := newOdd(t)
	ctx, cancel := context.WithCancel(t.Context())
	o.on(orgMint, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := o.app().Register(ctx, ask(org)); !errors.Is(err, githubapp.ErrUncertain) || !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestCancelledBeforeSendingIsCertain(t *testing.T) {
	o := newOdd(t)
	a := o.app()
	if _, err := a.InstallationID(t.Context(), org); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.on("POST /app/installations/7/access_tokens", func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	_, err := a.Register(ctx, ask(org))
	if !errors.Is(err, context.Canceled) || errors.Is(err, githubapp.ErrUncertain) {
		t.Errorf("error %v", err)
	}
}

func TestNothingSentIsCertain(t *testing.T) {
	t.Run("no connection", func(t *testing.T) {
		o := newOdd(t)
		a := o.app()
		if _, _, err := a.GetRunner(t.Context(), org, 1); err != nil { // so that a token is there
			t.Fatal(err)
		}
		a.Close()
		o.server.Close()
		_, err := a.Register(t.Context(), ask(org))
		if err == nil || errors.Is(err, githubapp.ErrUncertain) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("no token", func(t *testing.T) {
		o := newOdd(t)
		o.on("POST /app/installations/7/access_tokens", replying(502, ``))
		_, err := o.app().Register(t.Context(), ask(org))
		if err == nil || errors.Is(err, githubapp.ErrUncertain) || !strings.Contains(err.Error(), "502") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("token of nothing", func(t *testing.T) {
		for _, body := range []string{`null`, `{}`, `[]`, `{"token":"x"}`, ``} {
			o := newOdd(t)
			o.on("POST /app/installations/7/access_tokens", replying(201, body))
			_, err := o.app().Register(t.Context(), ask(org))
			if err == nil || errors.Is(err, githubapp.ErrUncertain) || !strings.Contains(err.Error(), "token") {
				t.Errorf("%s: error %v", body, err)
			}
		}
	})
	t.Run("bad request of ours", func(t *testing.T) {
		o := newOdd(t)
		a := o.app()
		for name, change := range map[string]func(*githubapp.RegisterRequest){
			"no scope":       func(r *githubapp.RegisterRequest) { r.Scope = fleet.Scope{} },
			"path in scope":  func(r *githubapp.RegisterRequest) { r.Scope.Repo = "../.." },
			"slash in owner": func(r *githubapp.RegisterRequest) { r.Scope = fleet.Scope{Owner: "acme/rockets"} },
			"no name":        func(r *githubapp.RegisterRequest) { r.Name = "" },
			"long name":      func(r *githubapp.RegisterRequest) { r.Name = strings.Repeat("x", 65) },
			"no labels":      func(r *githubapp.RegisterRequest) { r.Labels = nil },
			"empty label":    func(r *githubapp.RegisterRequest) { r.Labels = []string{""} },
			"long label":     func(r *githubapp.RegisterRequest) { r.Labels = []string{strings.Repeat("x", 257)} },
		} {
			r := ask(org)
			change(&r)
			if _, err := a.Register(t.Context(), r); err == nil || errors.Is(err, githubapp.ErrUncertain) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if len(o.calls) != 0 {
			t.Errorf("called %v", o.calls)
		}
	})
}

func TestUnfitConfigIsTakenBack(t *testing.T) {
	const remove = "DELETE /orgs/acme/actions/runners/359"
	for _, c := range []struct {
		name, config string
		deleted      int
		uncertain    bool
	}{
		{"not ephemeral", config("s1-mac-abc", "False"), 204, false},
		{"ephemeral is a number", config("s1-mac-abc", 1), 204, false},
		{"another name", config("s1-mac-abd", "True"), 204, false},
		{"not base64", "?", 204, false},
		{"not JSON", "eA==", 204, false},
		{"no settings", "e30=", 204, false},
		{"gone meanwhile", config("s1-mac-abc", nil), 404, false},
		{"cannot be deleted", config("s1-mac-abc", "False"), 500, true},
		{"runs a job", config("s1-mac-abc", "False"), 422, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOdd(t)
			o.on(orgMint, replying(201, registered(359, "s1-mac-abc", c.config)))
			o.on(remove, replying(c.deleted, ``))
			_, err := o.app().Register(t.Context(), ask(org))
			if err == nil || errors.Is(err, githubapp.ErrUncertain) != c.uncertain {
				t.Fatalf("error %v", err)
			}
			if n := o.count("DELETE", "/359"); n != 1 {
				t.Errorf("deleted %d times", n)
			}
			if strings.Contains(err.Error(), c.config) && len(c.config) > 1 {
				t.Error("the error shows the config")
			}
		})
	}
}

func TestGroups(t *testing.T) {
	const groups = "GET /orgs/acme/actions/runner-groups"
	list := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("page") == "2" {
			reply(w, 200, `{"total_count":3,"runner_groups":[{"id":12,"name":"Macs"}]}`)
			return
		}
		w.Header().Set("Link", `<http://`+r.Host+r.URL.Path+`?page=2>; rel="next"`)
		reply(w, 200, `{"total_count":3,"runner_groups":[{"id":1,"name":"Default"},{"id":11,"name":"macs"}]}`)
	}
	good := replying(201, registered(359, "s1-mac-abc", config("s1-mac-abc", true)))
	in := func(scope fleet.Scope, group string) githubapp.RegisterRequest {
		r := ask(scope)
		r.Group = group
		return r
	}
	lastGroup := func(o *odd) (id struct {
		ID int64 `json:"runner_group_id"`
	},
	) {
		json.Unmarshal([]byte(o.bodies[len(o.bodies)-1]), &id)
		return id
	}

	t.Run("by exact name on any page, cached", func(t *testing.T) {
		o := newOdd(t)
		o.on(groups, list)
		o.on(orgMint, good)
		a := o.app()
		for range 3 {
			if _, err := a.Register(t.Context(), in(org, "Macs")); err != nil {
				t.Fatal(err)
			}
		}
		if id := lastGroup(o).ID; id != 12 || o.count("GET", "/runner-groups") != 2 {
			t.Errorf("group %d after %d lists", id, o.count("GET", "/runner-groups"))
		}
	})
	t.Run("default needs no list", func(t *testing.T) {
		o := newOdd(t)
		o.on(orgMint, good)
		o.on(repoMint, good)
		a := o.app()
		for _, r := range []githubapp.RegisterRequest{in(org, ""), in(org, "Default"), in(org, "default"), in(rocket, "Macs")} {
			if _, err := a.Register(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if id := lastGroup(o).ID; id != 1 {
				t.Errorf("group %d", id)
			}
		}
	})
	t.Run("unknown", func(t *testing.T) {
		o := newOdd(t)
		o.on(groups, list)
		_, err := o.app().Register(t.Context(), in(org, "MACS"))
		if !errors.Is(err, githubapp.ErrGroup) || o.count("POST", "generate-jitconfig") != 0 {
			t.Errorf("error %v", err)
		}
	})
	t.Run("list refused", func(t *testing.T) {
		o := newOdd(t)
		o.on(groups, replying(403, `{"message":"Resource not accessible by integration"}`))
		if _, err := o.app().Register(t.Context(), in(org, "Macs")); !errors.Is(err, githubapp.ErrGroup) {
			t.Errorf("error %v", err)
		}
	})
	for _, status := range []int{403, 404} {
		t.Run(fmt.Sprintf("use refused with %d", status), func(t *testing.T) {
			o := newOdd(t)
			o.on(groups, list)
			o.on(orgMint, replying(status, `{"message":"no"}`))
			a := o.app()
			for range 2 {
				if _, err := a.Register(t.Context(), in(org, "Macs")); !errors.Is(err, githubapp.ErrGroup) || errors.Is(err, githubapp.ErrUncertain) {
					t.Errorf("error %v", err)
				}
			}
			if n := o.count("GET", "/runner-groups"); n != 4 {
				t.Errorf("%d lists: the refused id is still cached", n)
			}
		})
	}
}

// Many at once share one look-up of the installation and one token.
func TestParallelRegistrations(t *testing.T) {
	o := newOdd(t)
	var mu sync.Mutex
	var next int64
	o.on(orgMint, func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		next++
		id := next
		mu.Unlock()
		reply(w, 201, registered(id, "s1-mac-abc", config("s1-mac-abc", true)))
	})
	a := o.app()
	var wg sync.WaitGroup
	ids := make([]int64, 40)
	for i := range ids {
		wg.Go(func() {
			got, err := a.Register(t.Context(), ask(org))
			if err != nil {
				t.Error(err)
			}
			ids[i] = got.ID
		})
	}
	wg.Wait()
	seen := map[int64]bool{}
	for _, id := range ids {
		if seen[id] {
			t.Errorf("runner %d was handed out twice", id)
		}
		seen[id] = true
	}
	if l, k := o.count("GET", "/installation"), o.count("POST", "/access_tokens"); l != 1 || k != 1 {
		t.Errorf("%d look-ups and %d tokens", l, k)
	}
}
