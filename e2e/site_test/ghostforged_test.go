// SPDX-License-Identifier: MIT

package site_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/url"
)

func halfAndWhole(s *site) {
	id := s.queue(short("half"))[0]
	s.over(id)
	whole := []byte(s.first(id, "completed").Payload)
	for _, step := range []struct {
		body []byte
		want string
	}{{whole[:len(whole)/2], "failed"}, {whole, "processed"}} {
		status, said := s.post(s.signed("half-and-whole", "workflow_job", step.body))
		if status != http.StatusAccepted || s.delivered()["half-and-whole"].Status != step.want {
			s.t.Errorf("%d bytes: %d %s, want %s; the books have %+v", len(step.body), status, said, step.want, s.delivered()["half-and-whole"])
		}
	}
}

// delivery is a request as GitHub makes it.
type delivery struct {
	headers map[string]string
	body    []byte
}

// signed is a delivery as the App's webhook sends it.
func (s *site) signed(guid, event string, body []byte) delivery {
	s.t.Helper()
	app, err := s.sim.App(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	return delivery{headers: map[string]string{
		"Content-Type": "application/json", "X-GitHub-Event": event, "X-GitHub-Delivery": guid,
		"X-GitHub-Hook-Installation-Target-Type": "integration", "X-GitHub-Hook-Installation-Target-ID": fmt.Sprint(app.ID),
		"X-Hub-Signature-256": signature(app.WebhookSecret, body),
	}, body: body}
}

func signature(key string, body []byte) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write(body)
	return "sha256=" + hex.EncodeToString(mac.Sum(nil))
}

// with returns the delivery with other headers; an empty one is left out.
func (d delivery) with(headers map[string]string) delivery {
	d.headers = maps.Clone(d.headers)
	maps.Copy(d.headers, headers)
	maps.DeleteFunc(d.headers, func(_, value string) bool { return value == "" })
	return d
}

// post delivers to the controller, and again what a busy machine has not stored in GitHub's
// time.
func (s *site) post(d delivery) (status int, said string) {
	s.t.Helper()
	eventually(s.t, "it is answered in GitHub's time, or in that of a redelivery", func() bool {
		status, said = s.postOnce(d)
		return status != http.StatusServiceUnavailable && status != http.StatusRequestTimeout
	})
	return status, said
}

func (s *site) postOnce(d delivery) (status int, said string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx, http.MethodPost, s.webhook+"/webhook", bytes.NewReader(d.body))
	if err != nil {
		s.t.Fatal(err)
	}
	for name, value := range d.headers {
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	var answer bytes.Buffer
	if _, err := answer.ReadFrom(res.Body); err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, answer.String()
}

func forged(s *site) {
	id := s.queue(short("genuine"))[0]
	s.over(id)
	body := []byte(s.first(id, "completed").Payload)
	app, err := s.sim.App(s.ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	old := hmac.New(sha1.New, []byte(app.WebhookSecret))
	old.Write(body)
	form := s.signed("a-form", "workflow_job", []byte(url.Values{"payload": {string(body)}}.Encode()))
	genuine := s.signed("forged", "workflow_job", body)
	for _, c := range []struct {
		name   string
		send   delivery
		status int
		kept   string // its status in the books; empty: it is not there
	}{
		{"signed with another key", genuine.with(map[string]string{"X-Hub-Signature-256": signature("another", body)}), http.StatusUnauthorized, ""},
		{"signed with an empty key", genuine.with(map[string]string{"X-Hub-Signature-256": signature("", body)}), http.StatusUnauthorized, ""},
		{"not signed", genuine.with(map[string]string{"X-Hub-Signature-256": ""}), http.StatusUnauthorized, ""},
		{"signed by SHA-1 alone", genuine.with(map[string]string{"X-Hub-Signature-256": "", "X-Hub-Signature": "sha1=" + hex.EncodeToString(old.Sum(nil))}), http.StatusUnauthorized, ""},
		{"an unknown event", s.signed("unknown", "sponsorship", []byte(`{"action":"created"}`)), http.StatusAccepted, "ignored"},
		{"a form", form.with(map[string]string{"Content-Type": "application/x-www-form-urlencoded"}), http.StatusAccepted, "processed"},
	} {
		status, said := s.post(c.send)
		if kept := s.delivered()[c.send.headers["X-GitHub-Delivery"]].Status; status != c.status || kept != c.kept {
			s.t.Errorf("%s: answered %d %s, and the books have it as %q; want %d and %q", c.name, status, said, kept, c.status, c.kept)
		}
	}
}

func large(s *site) {
	const most = 25 << 20 // GitHub sends nothing that is larger
	body := bytes.Repeat([]byte(" "), most+1)
	if status, said := s.post(s.signed("the-largest", "sponsorship", body[:most])); status != http.StatusAccepted {
		s.t.Errorf("answered %d %s", status, said)
	}
	if kept := s.delivered()["the-largest"].Status; kept != "ignored" {
		s.t.Errorf("the books have it as %q", kept)
	}
	status, said := s.post(s.signed("too-large", "workflow_job", body))
	if kept := s.delivered()["too-large"].Status; status != http.StatusRequestEntityTooLarge || kept != "" {
		s.t.Errorf("one byte more: answered %d %s, and the books have it as %q", status, said, kept)
	}
}
