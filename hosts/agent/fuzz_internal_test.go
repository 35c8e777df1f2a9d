// SPDX-License-Identifier: MIT

package agent

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// says is a controller, or whatever answers at its address, that says the same to everything.
type says struct {
	status     int
	retryAfter string
	body       []byte
}

func (s says) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{
		StatusCode: s.status, Header: http.Header{"Retry-After": {s.retryAfter}}, Body: io.NopCloser(bytes.NewReader(s.body)), Request: r,
	}, nil
}

const (
	fuzzCredential = "credential-of-the-fuzzed-agent"
	fuzzToken      = "enrolment-token-of-the-fuzzed-agent"
)

// FuzzAnswer lets the controller answer every call with anything: what is taken is fit
// for a report, for a file's name and for a clock, and no error shows a secret.
func FuzzAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, status int, header string, body []byte) {
		c := &client{base: &url.URL{Scheme: "https", Host: "controller"}, http: &http.Client{
			Transport: says{status, header, body}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
		ctx, credential := t.Context(), secret.New(fuzzCredential)
		check := func(err error) bool {
			if err == nil {
				if status/100 != 2 {
					t.Errorf("status %d is taken for success", status)
				}
				return true
			}
			text := err.Error()
			if len(text) > 1500 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Errorf("error of %d bytes: %.300q", len(text), text)
			}
			for _, hidden := range []string{fuzzCredential, fuzzToken} {
				if strings.Contains(text, hidden) && !bytes.Contains(body, []byte(hidden)) {
					t.Errorf("the error shows a secret: %s", text)
				}
			}
			if wait := retryAfter(err); wait < 0 || wait > time.Hour {
				t.Errorf("told to wait %v", wait)
			}
			return false
		}
		if e, err := c.enrol(ctx, protocol.Enrol{Token: fuzzToken}); check(err) && (e.Host == "" || e.Site == "" || !fleet.ValidName(e.Name)) {
			t.Errorf("enrolled as %+v", e)
		}
		if w, err := c.hello(ctx, credential, protocol.Hello{}); check(err) {
			for _, d := range []time.Duration{time.Duration(w.PollSeconds) * time.Second, 3 * time.Duration(w.LeaseSeconds) * time.Second} {
				if d < 0 || d > 100*24*time.Hour || w.Epoch < 0 {
					t.Errorf("welcome %+v", w)
				}
			}
		}
		if d, err := c.desired(ctx, credential, "i", 1, 0); check(err) {
			desiredFits(t, d)
		}
		check(c.report(ctx, credential, protocol.Report{}))
		name, config, policy, err := c.mint(ctx, credential, "i", "r-1")
		if check(err) == config.Empty() || (err == nil) == (name == "") || len(name) > protocol.MaxID {
			t.Errorf("minted %q: %v", name, err)
		}
		if policy != nil && (err != nil || policy.Validate() != nil) {
			t.Errorf("a policy that is none: %+v", policy)
		}
		if err != nil && strings.Contains(string(body), `"jit_config":"`) && status/100 == 2 && len(err.Error()) > 300 {
			t.Errorf("an error that may hold the config: %v", err)
		}
	})
}

func desiredFits(t *testing.T, d protocol.Desired) {
	t.Helper()
	if d.Revision < 0 || d.Epoch < 0 || d.Revision > maxCount || d.Epoch > maxCount || len(d.Runners) > protocol.MaxRunners {
		t.Errorf("desired %d of epoch %d with %d runners", d.Revision, d.Epoch, len(d.Runners))
	}
	seen := map[string]bool{}
	for _, r := range d.Runners {
		_, err := fleet.ParseScope(r.Scope)
		if seen[r.ID] || !fleet.ValidName(r.Pool) || r.Scope != "" && err != nil || time.Duration(r.EndGraceSeconds)*time.Second > maxEndGrace || r.EndGraceSeconds < 0 {
			t.Errorf("desired %+v", r)
		}
		seen[r.ID] = true
		if validID(r.ID) && (strings.ContainsAny(r.ID, "/\\.\x00") || len(r.ID) > 40) {
			t.Errorf("id %q becomes a file's name", r.ID)
		}
	}
}
