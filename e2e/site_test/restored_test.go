// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// An older copy of the database is restored under the controller: no VM dies, no job is
// disturbed, what was begun since is found again, and a registration of another site is
// left alone.
func TestOlderDatabase(t *testing.T) {
	turn(t)
	s := newSite(t, "--seed", "121")
	controller := s.startController()
	agent := s.startAgent("mini-1")
	const ticks = 80
	before := s.queue(ticking("begun-before", ticks))[0]
	s.untilJob(before, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })

	// What stands still is copied whole, with what is not in the main file yet.
	thaw := s.freeze(controller.cmd.Process.Pid)
	saved := map[string][]byte{}
	for _, name := range []string{"minifleet.db", "minifleet.db-wal"} {
		b, err := os.ReadFile(s.path(name))
		if err != nil {
			t.Fatal(err)
		}
		saved[name] = b
	}
	thaw()

	over := s.queue(githubsim.JobSpec{Name: "over-since", Steps: []githubsim.Step{{Run: "true"}}})[0]
	s.untilJob(over, "it ends", githubsim.Job.Done)
	since := s.queue(ticking("begun-since", ticks))[0]
	s.untilJob(since, "it ticks", func(j githubsim.Job) bool { return len(j.Feed) > 2 })
	stranger := s.registerStranger("zzzzzzzz-demo-aaaaaaaaaaaaaaaa")

	controller.signal(syscall.SIGKILL)
	controller.exit()
	for name, b := range saved {
		if err := os.WriteFile(s.path(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(s.path("minifleet.db-shm")); err != nil {
		t.Fatal(err)
	}
	controller = s.startController()
	for _, id := range []int64{before, since} {
		s.untilEnd(id, "it ends")
		complete(t, s.job(id), ticks)
	}
	after := s.queue(githubsim.JobSpec{Name: "after", Steps: []githubsim.Step{{Run: "true"}}})[0]
	s.untilJob(after, "it ends", githubsim.Job.Done)
	eventually(t, "nothing of this site is left", func() bool {
		left := s.leftovers()
		return len(left) == 1 && left[0] == "registration zzzzzzzz-demo-aaaaaaaaaaaaaaaa"
	})
	s.gitHub(http.MethodDelete, fmt.Sprintf("/repos/octo/demo/actions/runners/%d", stranger), s.installationToken(), nil, nil)
	agent.stop()
	controller.stop()
}

// registerStranger makes a registration that is no runner of this site.
func (s *site) registerStranger(name string) (id int64) {
	s.t.Helper()
	var made struct {
		Runner struct {
			ID int64 `json:"id"`
		} `json:"runner"`
	}
	s.gitHub(http.MethodPost, "/repos/octo/demo/actions/runners/generate-jitconfig", s.installationToken(),
		map[string]any{"name": name, "runner_group_id": 1, "labels": []string{"elsewhere"}}, &made)
	return made.Runner.ID
}

// installationToken is what the App gets of GitHub.
func (s *site) installationToken() string {
	s.t.Helper()
	raw, err := os.ReadFile(s.path("app.pem"))
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	app, err := s.sim.App(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	claims := fmt.Sprintf(`{"iss":"%d","iat":%d,"exp":%d}`, app.ID, time.Now().Add(-time.Minute).Unix(), time.Now().Add(5*time.Minute).Unix())
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	sum := sha256.Sum256([]byte(signed))
	signature, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		s.t.Fatal(err)
	}
	jwt := signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	var installed []struct {
		ID int64 `json:"id"`
	}
	s.gitHub(http.MethodGet, "/app/installations", jwt, nil, &installed)
	var out struct {
		Token string `json:"token"`
	}
	s.gitHub(http.MethodPost, fmt.Sprintf("/app/installations/%d/access_tokens", installed[0].ID), jwt, nil, &out)
	return out.Token
}

// gitHub makes a call to GitHub, as others than our programs do.
func (s *site) gitHub(method, path, token string, in, out any) {
	s.t.Helper()
	body := &bytes.Buffer{}
	if in != nil {
		if err := json.NewEncoder(body).Encode(in); err != nil {
			s.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(s.ctx, method, s.sim.BaseURL+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		s.t.Fatalf("%s %s: %s", method, path, res.Status)
	}
	if out != nil {
		if err := json.NewDecoder(res.Body).Decode(out); err != nil {
			s.t.Fatal(err)
		}
	}
}
