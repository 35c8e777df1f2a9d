// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/webhook"
)

// delivery is a request as GitHub makes it, to be spoiled.
type delivery struct {
	guid, event string
	body        []byte
	headers     map[string]string // beyond the usual ones; "" leaves one out
	stream      bool              // in chunks, without a Content-Length
}

func sign(key string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// post makes a request to the controller's webhook, signed with the key, and again if it is
// not answered in GitHub's time: a busy machine may take longer.
func (c *served) post(s *site, key string, d delivery) (status int, answer map[string]any) {
	c.t.Helper()
	eventually(c.t, "delivery "+d.guid+" is answered in GitHub's time, or in that of a redelivery", func() bool {
		status, answer = c.postOnce(s, key, d)
		return status != http.StatusServiceUnavailable && status != http.StatusRequestTimeout
	})
	return status, answer
}

func (c *served) postOnce(s *site, key string, d delivery) (status int, answer map[string]any) {
	c.t.Helper()
	headers := map[string]string{
		"Content-Type": "application/json", "X-GitHub-Delivery": d.guid, "X-GitHub-Event": d.event,
		"X-GitHub-Hook-Installation-Target-Type": "integration",
		"X-GitHub-Hook-Installation-Target-ID":   fmt.Sprint(s.sim.AppID()),
		"X-Hub-Signature-256":                    sign(key, d.body),
	}
	maps.Copy(headers, d.headers)
	var body io.Reader = bytes.NewReader(d.body)
	if d.stream {
		body = io.MultiReader(body) // whose length net/http cannot know
	}
	req, err := http.NewRequestWithContext(c.t.Context(), http.MethodPost, c.webhook+"/webhook", body)
	if err != nil {
		c.t.Fatal(err)
	}
	for name, value := range headers {
		if value != "" {
			req.Header.Set(name, value)
		}
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatalf("post %s: %v", d.guid, err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		c.t.Fatalf("post %s: the answer is not JSON: %v", d.guid, err)
	}
	return res.StatusCode, answer
}

// genuine returns the payload of a `queued` delivery that GitHub has made, with
// another job id, and with changes.
func (s *site) genuine(job int64, changes ...func(map[string]any)) []byte {
	s.t.Helper()
	for _, d := range s.sim.Deliveries() {
		if d.Event != "workflow_job" || d.Action != "queued" {
			continue
		}
		dec := json.NewDecoder(strings.NewReader(d.Payload))
		dec.UseNumber()
		var payload map[string]any
		if err := dec.Decode(&payload); err != nil {
			s.t.Fatal(err)
		}
		payload["workflow_job"].(map[string]any)["id"] = job
		for _, change := range changes {
			change(payload)
		}
		b, err := json.Marshal(payload)
		if err != nil {
			s.t.Fatal(err)
		}
		return b
	}
	s.t.Fatal("GitHub has delivered no queued job")
	return nil
}

func inInstallation(id int64) func(map[string]any) {
	return func(p map[string]any) { p["installation"].(map[string]any)["id"] = id }
}

func inRepository(fullName string) func(map[string]any) {
	return func(p map[string]any) { p["repository"].(map[string]any)["full_name"] = fullName }
}

// macLabels are those of the pool mac.
func macLabels() []string { return []string{"self-hosted", "macos", "arm64"} }

func TestDeliveries(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.serve()
	key := s.sim.WebhookSecret().Reveal()
	s.installationsRead(c)
	whole := s.genuine(7001)
	large := append(slices.Clone(whole), bytes.Repeat([]byte(" "), webhook.MaxBody)...)
	for name, test := range map[string]struct {
		key    string // "" is the right one
		send   delivery
		code   int
		status string // of the delivery as stored, "" if nothing is
		reason string // a part of it, or of the error
	}{
		"processed":                    {send: delivery{event: "workflow_job", body: whole}, code: 202, status: "processed"},
		"wrong signature":              {key: "another key", send: delivery{event: "workflow_job", body: whole}, code: 401, reason: "ignature"},
		"missing signature":            {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"X-Hub-Signature-256": ""}}, code: 401, reason: "ignature"},
		"old SHA-1 signature alone":    {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"X-Hub-Signature-256": "", "X-Hub-Signature": "sha1=00"}}, code: 401, reason: "ignature"},
		"signature of another body":    {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"X-Hub-Signature-256": sign(key, []byte("{}"))}}, code: 401, reason: "ignature"},
		"oversized":                    {send: delivery{event: "workflow_job", body: large}, code: 413, reason: "25 MB"},
		"oversized, in chunks":         {send: delivery{event: "workflow_job", body: large, stream: true}, code: 413, reason: "25 MB"},
		"truncated JSON":               {send: delivery{event: "workflow_job", body: whole[:len(whole)/2]}, code: 202, status: "failed", reason: "not the JSON"},
		"no JSON at all":               {send: delivery{event: "workflow_job", body: []byte("hello")}, code: 202, status: "failed", reason: "not the JSON"},
		"unknown installation":         {send: delivery{event: "workflow_job", body: s.genuine(7002, inInstallation(999))}, code: 202, status: "failed", reason: "unknown installation 999"},
		"foreign repository":           {send: delivery{event: "workflow_job", body: s.genuine(7003, inRepository("acme/rockets"))}, code: 202, status: "ignored", reason: "no pool serves acme/rockets"},
		"repository without a pool":    {send: delivery{event: "workflow_job", body: s.genuine(7004, inRepository("octo/other"))}, code: 202, status: "ignored", reason: "no pool serves octo/other"},
		"unknown event":                {send: delivery{event: "sponsorship", body: []byte(`{"action":"created"}`)}, code: 202, status: "ignored", reason: "sponsorship"},
		"unknown event, broken JSON":   {send: delivery{event: "sponsorship", body: []byte(`{`)}, code: 202, status: "ignored", reason: "sponsorship"},
		"unknown action":               {send: delivery{event: "workflow_job", body: s.genuine(7005, func(p map[string]any) { p["action"] = "pondered" })}, code: 202, status: "ignored", reason: "pondered"},
		"another App":                  {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"X-GitHub-Hook-Installation-Target-ID": "1"}}, code: 202, status: "ignored", reason: "App 1"},
		"a repository's own webhook":   {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"X-GitHub-Hook-Installation-Target-Type": "repository"}}, code: 202, status: "ignored", reason: "target type"},
		"no event":                     {send: delivery{event: "", body: whole}, code: 400, reason: "X-GitHub-Event"},
		"a name that is no event's":    {send: delivery{event: "work flow", body: whole}, code: 400, reason: "event"},
		"as a form, like an old hook":  {send: delivery{event: "workflow_job", body: []byte("payload=%7B%7D"), headers: map[string]string{"Content-Type": "application/x-www-form-urlencoded"}}, code: 202, status: "failed", reason: "no workflow_job"},
		"a content type of no use":     {send: delivery{event: "workflow_job", body: whole, headers: map[string]string{"Content-Type": "text/plain"}}, code: 202, status: "failed", reason: "application/json"},
		"not larger than what is sent": {send: delivery{event: "workflow_job", body: large[:webhook.MaxBody]}, code: 202, status: "processed"},
	} {
		t.Run(name, func(t *testing.T) {
			c := &served{t: t, webhook: c.webhook, admin: c.admin}
			d := test.send
			d.guid = "guid-" + strings.Map(func(r rune) rune {
				if r < 'a' || r > 'z' {
					return '-'
				}
				return r
			}, name)
			use := key
			if test.key != "" {
				use = test.key
			}
			code, answer := c.post(s, use, d)
			said := fmt.Sprint(answer["reason"], answer["error"])
			if code != test.code || (test.status != "" && answer["status"] != test.status) || !strings.Contains(said, test.reason) {
				t.Errorf("answer %d %v, want %d %s %q", code, answer, test.code, test.status, test.reason)
			}
			stored := ""
			for _, row := range c.list("deliveries", "--limit", "1000") {
				if row["guid"] == d.guid {
					stored = fmt.Sprint(row["status"])
					if !strings.Contains(fmt.Sprint(row["reason"]), test.reason) {
						t.Errorf("the operator sees the reason %q, want %q in it", row["reason"], test.reason)
					}
				}
			}
			if stored != test.status {
				t.Errorf("stored as %q, want %q", stored, test.status)
			}
		})
	}
	if ids := c.list("jobs").column("id"); !slices.Contains(ids, "7001") || len(ids) != 2 {
		t.Errorf("jobs %v, want GitHub's one and 7001: only what was processed makes a job", ids)
	}
	failed := c.get("deliveries", "--status", "failed")
	if !strings.Contains(failed, "guid-truncated--") || strings.Contains(failed, "guid-foreign-repository") || !strings.Contains(failed, "not the JSON") {
		t.Errorf("the operator's table of failed deliveries:\n%s", failed)
	}
	if log := c.log.String(); strings.Contains(log, key) {
		t.Error("the log contains the webhook's secret")
	}
}
