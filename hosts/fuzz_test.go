// SPDX-License-Identifier: MIT

package hosts_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// paper is a store that only writes down what reaches it: what is fuzzed here are the
// bodies, and the real store has tests of its own.
type paper struct {
	hosts.Store
	enrols  []string // token hash, credential hash, name, machine
	hellos  []fleet.HostFacts
	heard   []string
	reports []fleet.HostReport
	mints   []fleet.RunnerID
}

const (
	fuzzCredential = "host-credential-of-the-fuzzed-agent"
	fuzzConfig     = "eyJ-the-config-of-somebody-else"
)

func (*paper) Site() string { return "site" }
func (*paper) Epoch() int64 { return 1 }

func (p *paper) Enrol(_ context.Context, token, credential, name, machine string) (fleet.Host, error) {
	p.enrols = append(p.enrols, token, credential, name, machine)
	return fleet.Host{ID: "h-1", Name: name}, nil
}

func (*paper) HostByCredential(_ context.Context, hash string) (fleet.Host, error) {
	if hash != secret.New(fuzzCredential).Hash() {
		return fleet.Host{}, fleet.ErrNotFound
	}
	return fleet.Host{ID: "h-1", Name: "mini"}, nil
}

func (p *paper) Hello(_ context.Context, _ fleet.HostID, instance, machine string, facts fleet.HostFacts, _ time.Duration) error {
	p.heard, p.hellos = append(p.heard, instance, machine), append(p.hellos, facts)
	return nil
}

func (p *paper) Heard(_ context.Context, _ fleet.HostID, instance string, _ time.Duration) error {
	p.heard = append(p.heard, instance)
	return nil
}

func (*paper) Desired(context.Context, fleet.HostID) (fleet.Desired, error) {
	return fleet.Desired{Site: "site", Epoch: 1, Revision: 7}, nil
}

func (*paper) HostChanged(fleet.HostID) <-chan struct{} {
	return make(chan struct{})
}

func (p *paper) Report(_ context.Context, _ fleet.HostID, r fleet.HostReport, _ time.Duration) error {
	p.reports = append(p.reports, r)
	return nil
}

func (p *paper) Runner(_ context.Context, id fleet.RunnerID) (fleet.Runner, bool, error) {
	return fleet.Runner{}, false, nil
}

func (p *paper) BeginMint(_ context.Context, _ fleet.HostID, id fleet.RunnerID, _ string) (fleet.Mint, error) {
	p.mints = append(p.mints, id)
	return fleet.Mint{}, fleet.ErrNoGrant
}

func (p *paper) untouched() bool {
	return len(p.enrols)+len(p.hellos)+len(p.heard)+len(p.reports)+len(p.mints) == 0
}

// send gives the controller one call and checks what every answer must be.
func send(t *testing.T, method, path, query, credential string, body []byte) (*paper, *httptest.ResponseRecorder) {
	t.Helper()
	p := &paper{}
	s, err := hosts.New(hosts.Config{Store: p, GitHub: &github{}, Live: time.Millisecond, Name: func(site, pool string) string { return site + pool }})
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	s.Routes(router)
	r := httptest.NewRequestWithContext(t.Context(), method, "/", bytes.NewReader(body))
	r.URL.Path, r.URL.RawQuery = path, query
	if credential != "" {
		r.Header.Set("Authorization", "Bearer "+credential)
	}
	w := httptest.NewRecorder()
	router.ServeHTTP(w, r)
	if w.Code/100 == 2 {
		return p, w
	}
	var e protocol.Error
	if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || e.Message == "" || e.Code == "" {
		t.Errorf("answer %d %q: %v", w.Code, w.Body, err)
	}
	if len(e.Message) > protocol.MaxText || !utf8.ValidString(e.Message) || strings.ContainsFunc(e.Message, unicode.IsControl) {
		t.Errorf("answer of %d bytes: %.300q", len(e.Message), e.Message)
	}
	return p, w
}

// refused reports whether a call was refused because of what it says; then nothing of
// it may have reached the store.
func refused(t *testing.T, p *paper, w *httptest.ResponseRecorder) bool {
	t.Helper()
	switch w.Code {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusRequestEntityTooLarge:
	default:
		return false
	}
	if !p.untouched() {
		t.Errorf("refused with %d, and the store was told %+v", w.Code, p)
	}
	return true
}

// FuzzEnrol is the one call that anybody can make.
func FuzzEnrol(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		p, w := send(t, http.MethodPost, protocol.PathEnrol, "", "", body)
		var in protocol.Enrol
		err := json.Unmarshal(body, &in)
		if refused(t, p, w) {
			if err == nil && len(in.Token) > 12 && strings.Count(string(body), in.Token) == 1 && strings.Contains(w.Body.String(), in.Token) {
				t.Errorf("the refusal shows the token: %s", w.Body)
			}
			return
		}
		if err != nil || w.Code != http.StatusOK || len(p.enrols) != 4 {
			t.Fatalf("answer %d, the store was told %q, %v", w.Code, p.enrols, err)
		}
		token, credential, name, machine := p.enrols[0], p.enrols[1], p.enrols[2], p.enrols[3]
		if token != secret.New(in.Token).Hash() || credential != in.CredentialHash || len(credential) != 64 ||
			!fleet.ValidName(name) || machine == "" || len(machine) > protocol.MaxID {
			t.Errorf("taken: %q", p.enrols)
		}
	})
}

// FuzzHello lets a host say anything of itself.
func FuzzHello(f *testing.F) {
	f.Fuzz(func(t *testing.T, credential string, body []byte) {
		p, w := send(t, http.MethodPost, protocol.PathHello, "", credential, body)
		if credential != fuzzCredential && w.Code != http.StatusUnauthorized {
			t.Fatalf("answer %d to the credential %q", w.Code, credential)
		}
		if refused(t, p, w) {
			return
		}
		var out protocol.Welcome
		if err := json.Unmarshal(w.Body.Bytes(), &out); err != nil || len(p.hellos) != 1 || out.Host != "h-1" {
			t.Fatalf("answer %d %s, %v", w.Code, w.Body, err)
		}
		ids(t, p.heard...)
		factsFit(t, p.hellos[0])
	})
}

// FuzzReport lets a host report anything.
func FuzzReport(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		p, w := send(t, http.MethodPost, protocol.PathReport, "", fuzzCredential, body)
		if refused(t, p, w) {
			return
		}
		if w.Code != http.StatusNoContent || len(p.reports) != 1 {
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
		r := p.reports[0]
		factsFit(t, r.Facts)
		if r.Sequence < 0 || r.Revision < 0 || r.Revision > 1<<53 || r.Sequence > 1<<53 || len(r.Runners) > protocol.MaxRunners {
			t.Errorf("taken: %+v", r)
		}
		ids(t, r.Instance)
		seen := map[fleet.RunnerID]bool{}
		for _, one := range r.Runners {
			ids(t, string(one.ID))
			if one.RunnerName != "" {
				ids(t, one.RunnerName)
			}
			fit(t, protocol.MaxText, one.Failure, one.Result, one.Progress)
			known := one.Observed != fleet.ObservedNone && slices.Contains(fleet.Observeds(), one.Observed)
			scope, err := fleet.ParseScope(one.Scope.String())
			if seen[one.ID] || !known || !fleet.ValidName(one.Pool) || !one.Scope.IsZero() && (err != nil || scope != one.Scope) {
				t.Errorf("taken: %+v", one)
			}
			seen[one.ID] = true
		}
		digests := map[string]bool{}
		for _, one := range r.Images {
			fit(t, 3*protocol.MaxText, one.Image, one.Failure) // what is no UTF-8 is shown by three bytes
			if digests[one.Digest] || !fleet.ValidDigest(one.Digest) || !slices.Contains(fleet.CacheStates(), one.State) ||
				min(one.DoneBytes, one.TotalBytes, one.FetchedBytes) < 0 || len(r.Images) > protocol.MaxImages {
				t.Errorf("taken: %+v", one)
			}
			digests[one.Digest] = true
		}
	})
}

// FuzzAskDesired asks for what is wanted with any query.
func FuzzAskDesired(f *testing.F) {
	f.Fuzz(func(t *testing.T, query string) {
		p, w := send(t, http.MethodGet, protocol.PathDesired, query, fuzzCredential, nil)
		if refused(t, p, w) {
			return
		}
		var d protocol.Desired
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil || w.Code != http.StatusOK || d.Revision != 7 || d.Runners == nil {
			t.Fatalf("answer %d %s, %v", w.Code, w.Body, err)
		}
		ids(t, p.heard...)
	})
}

// FuzzMint asks for a config that was not granted, in any words.
func FuzzMint(f *testing.F) {
	f.Fuzz(func(t *testing.T, runner string, body []byte) {
		path := strings.Replace(protocol.PathMint, "{runner}", runner, 1)
		if runner == "" || strings.Contains(runner, "/") || strings.HasSuffix(runner, "\\") {
			t.Skip("another path")
		}
		p, w := send(t, http.MethodPost, path, "", fuzzCredential, body)
		if refused(t, p, w) {
			return
		}
		if w.Code != http.StatusConflict || len(p.mints) != 1 || strings.Contains(w.Body.String(), fuzzConfig) {
			t.Fatalf("answer %d %s", w.Code, w.Body)
		}
		ids(t, append(p.heard, string(p.mints[0]))...)
	})
}

func ids(t *testing.T, list ...string) {
	t.Helper()
	for _, id := range list {
		if id == "" || len(id) > protocol.MaxID || strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-") != "" {
			t.Errorf("id %.100q got through", id)
		}
	}
}

func fit(t *testing.T, limit int, list ...string) {
	t.Helper()
	for _, s := range list {
		if len(s) > limit || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			t.Errorf("text %.100q got through", s)
		}
	}
}

func factsFit(t *testing.T, f fleet.HostFacts) {
	t.Helper()
	if f.Slots < 0 || f.Slots > 1000 || len(f.Backends) > 100 || len(f.Images) > 1000 {
		t.Errorf("facts %+v", f)
	}
	fit(t, 200, slices.Concat(f.Backends, f.Images, []string{f.OS, f.Arch, f.AgentVersion})...)
	fit(t, protocol.MaxText, f.Degraded)
}
