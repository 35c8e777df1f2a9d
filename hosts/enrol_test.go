// SPDX-License-Identifier: MIT

package hosts_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/hosts"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

func TestEnrolment(t *testing.T) {
	t.Parallel()
	request := func(token, credential string) protocol.Enrol {
		return protocol.Enrol{Token: token, CredentialHash: secret.New(credential).Hash(), Name: "mini-1", Machine: "m-1"}
	}
	t.Run("once, and again after a lost answer", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		token, credential := w.token("", time.Hour), "a-credential-of-the-host"
		var first, again protocol.Enrolled
		w.do(http.MethodPost, protocol.PathEnrol, "", request(token, credential), &first)
		want := protocol.Enrolled{Host: first.Host, Name: "mini-1", Site: w.s.Site()}
		if diff := cmp.Diff(want, first); diff != "" || !strings.HasPrefix(first.Host, "h-") {
			t.Errorf("%s", diff)
		}
		w.do(http.MethodPost, protocol.PathEnrol, "", request(token, credential), &again)
		if diff := cmp.Diff(first, again); diff != "" {
			t.Errorf("the same request made another host:\n%s", diff)
		}
		other := request(token, "of another host")
		other.Name, other.Machine = "mini-2", "m-2"
		w.refused(w.do(http.MethodPost, protocol.PathEnrol, "", other, nil), http.StatusUnauthorized, protocol.CodeToken)
		w.holdsNowhere(token, credential)
		if got, err := w.row(`SELECT credential_hash FROM hosts`); err != nil || got != secret.New(credential).Hash() {
			t.Errorf("stored %q, %v", got, err)
		}
		if w.do(http.MethodPost, protocol.PathHello, credential, protocol.Hello{Instance: "i", Machine: "m-1"}, nil).status != http.StatusOK {
			t.Error("the credential does not work")
		}
	})
	t.Run("expired and unknown", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		for _, token := range []string{w.token("", -time.Second), "never-given", "", strings.Repeat("x", 300)} {
			w.refused(w.do(http.MethodPost, protocol.PathEnrol, "", request(token, "c"), nil), http.StatusUnauthorized, protocol.CodeToken)
		}
	})
	t.Run("the token fixes the name", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var out protocol.Enrolled
		w.do(http.MethodPost, protocol.PathEnrol, "", request(w.token("rack-3", time.Hour), "c"), &out)
		if out.Name != "rack-3" {
			t.Errorf("%+v", out)
		}
	})
	t.Run("several hosts with one token", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		text, err := w.hosts.NewEnrolment(t.Context(), "", time.Hour, 2)
		w.must(err)
		token, pin, err := protocol.ParseEnrolment(text)
		w.must(err)
		if pin != "" {
			t.Errorf("pin %q", pin)
		}
		for i, want := range []int{200, 200, 401} {
			in := request(token.Reveal(), string(rune('a'+i)))
			in.Name = "mini-" + string(rune('a'+i))
			if got := w.do(http.MethodPost, protocol.PathEnrol, "", in, nil); got.status != want {
				t.Errorf("host %d: %d %s", i, got.status, got.body)
			}
		}
	})
	t.Run("the token carries the certificate's pin", func(t *testing.T) {
		t.Parallel()
		pin := strings.Repeat("ab", 32)
		w := newWorld(t, func(c *hosts.Config) { c.CertificatePin = pin })
		text, err := w.hosts.NewEnrolment(t.Context(), "", time.Hour, 1)
		w.must(err)
		if _, got, err := protocol.ParseEnrolment(text); err != nil || got != pin {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("a name that another machine has", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		w.agent("mini-1", 1)
		w.refused(w.do(http.MethodPost, protocol.PathEnrol, "", request(w.token("", time.Hour), "c"), nil), http.StatusConflict, protocol.CodeToken)
	})
	t.Run("what is not well formed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		token := w.token("", time.Hour)
		for name, edit := range map[string]func(*protocol.Enrol){
			"hash too short":   func(e *protocol.Enrol) { e.CredentialHash = "abc" },
			"hash in capitals": func(e *protocol.Enrol) { e.CredentialHash = strings.ToUpper(e.CredentialHash) },
			"name":             func(e *protocol.Enrol) { e.Name = "Mini One" },
			"no name":          func(e *protocol.Enrol) { e.Name = "" },
			"machine":          func(e *protocol.Enrol) { e.Machine = "a b" },
			"long machine":     func(e *protocol.Enrol) { e.Machine = strings.Repeat("m", 65) },
		} {
			in := request(token, "c")
			edit(&in)
			got := w.do(http.MethodPost, protocol.PathEnrol, "", in, nil)
			if got.status != http.StatusBadRequest || got.code() != protocol.CodeBadRequest || strings.Contains(string(got.body), token) {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
		for name, body := range map[string]string{"no JSON": "hello", "empty": "", "a list": "[1]", "wrong type": `{"token": 5}`} {
			if got := w.do(http.MethodPost, protocol.PathEnrol, "", body, nil); got.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
		big := `{"token":"` + strings.Repeat("x", 70<<10) + `"}`
		w.refused(w.do(http.MethodPost, protocol.PathEnrol, "", big, nil), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge)
		if got := w.do(http.MethodPost, protocol.PathEnrol, "", request(token, "c"), nil); got.status != http.StatusOK {
			t.Errorf("the token was used up by a bad request: %s", got.body)
		}
	})
}

func TestCredential(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.agent("mini-1", 1)
	calls := map[string][2]string{
		"hello": {http.MethodPost, protocol.PathHello}, "desired": {http.MethodGet, protocol.PathDesired + "?instance=" + a.instance},
		"report": {http.MethodPost, protocol.PathReport}, "mint": {http.MethodPost, mintPath("r-1")},
	}
	for name, c := range calls {
		for _, credential := range []string{"", "wrong", strings.Repeat("x", 201), secret.New(a.credential).Hash()} {
			w.refused(w.do(c[0], c[1], credential, "{}", nil), http.StatusUnauthorized, protocol.CodeCredential)
		}
		req, err := http.NewRequestWithContext(t.Context(), c[0], w.url+c[1], strings.NewReader("{}"))
		w.must(err)
		req.SetBasicAuth("x", a.credential)
		resp, err := http.DefaultClient.Do(req)
		w.must(err)
		resp.Body.Close()
		if resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s with another scheme: %d", name, resp.StatusCode)
		}
	}
	w.must(w.s.RemoveHost(t.Context(), a.id))
	for _, c := range calls {
		w.refused(w.do(c[0], c[1], a.credential, "{}", nil), http.StatusUnauthorized, protocol.CodeCredential)
	}
	w.holdsNowhere(a.credential)
}

func TestHello(t *testing.T) {
	t.Parallel()
	t.Run("welcome", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(c *hosts.Config) { c.Poll, c.Lease = time.Hour, 7*time.Minute })
		a := w.agent("mini-1", 2)
		var got protocol.Welcome
		w.do(http.MethodPost, protocol.PathHello, a.credential, a.hello(2), &got)
		want := protocol.Welcome{Site: w.s.Site(), Epoch: 1, Host: string(a.id), Name: "mini-1", PollSeconds: int(protocol.MaxWait.Seconds()), LeaseSeconds: 420}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s", diff)
		}
		list, _, err := w.s.ListHosts(t.Context(), fleet.HostQuery{})
		w.must(err)
		if h := list[0]; h.Slots != 2 || h.OS != "darwin" || h.Backends[0] != "vz" || h.Images[0] != "sonoma" || h.AgentVersion != "1" {
			t.Errorf("%+v", h)
		}
	})
	t.Run("a newer agent speaks", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		id := a.armed()
		newer := *a
		newer.instance = "i-newer"
		w.do(http.MethodPost, protocol.PathHello, a.credential, newer.hello(2), nil)
		w.refused(a.report(), http.StatusConflict, protocol.CodeSuperseded)
		w.refused(w.do(http.MethodGet, protocol.PathDesired+"?instance="+a.instance, a.credential, nil, nil), http.StatusConflict, protocol.CodeSuperseded)
		_, got := a.mint(id)
		w.refused(got, http.StatusConflict, protocol.CodeSuperseded)
		if calls, _ := w.gh.took(); len(calls) != 0 {
			t.Errorf("GitHub was asked for it: %q", calls)
		}
	})
	t.Run("another machine with the same credential", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		copied := *a
		copied.instance, copied.machine = "i-copy", "m-copy"
		w.refused(w.do(http.MethodPost, protocol.PathHello, a.credential, copied.hello(2), nil), http.StatusConflict, protocol.CodeOtherMachine)
		if got := a.report(); got.status != http.StatusNoContent {
			t.Errorf("the true one is refused: %d %s", got.status, got.body)
		}
	})
	t.Run("another machine when the host is silent", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, func(c *hosts.Config) { c.Live = time.Nanosecond })
		a := w.agent("mini-1", 2)
		moved := *a
		moved.instance, moved.machine = "i-new", "m-new"
		if got := w.do(http.MethodPost, protocol.PathHello, a.credential, moved.hello(2), nil); got.status != http.StatusOK {
			t.Errorf("%d %s", got.status, got.body)
		}
	})
	t.Run("what is not well formed", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a := w.agent("mini-1", 2)
		for name, edit := range map[string]func(*protocol.Hello){
			"no instance":   func(h *protocol.Hello) { h.Instance = "" },
			"instance":      func(h *protocol.Hello) { h.Instance = "a b" },
			"no machine":    func(h *protocol.Hello) { h.Machine = "" },
			"slots below 0": func(h *protocol.Hello) { h.Facts.Slots = -1 },
			"many slots":    func(h *protocol.Hello) { h.Facts.Slots = 1001 },
			"many backends": func(h *protocol.Hello) { h.Facts.Backends = make([]string, 101) },
			"many images":   func(h *protocol.Hello) { h.Facts.Images = make([]string, 1001) },
			"long word":     func(h *protocol.Hello) { h.Facts.OS = strings.Repeat("x", 201) },
			"long trouble":  func(h *protocol.Hello) { h.Facts.Degraded = strings.Repeat("x", protocol.MaxText+1) },
		} {
			in := a.hello(2)
			edit(&in)
			if got := w.do(http.MethodPost, protocol.PathHello, a.credential, in, nil); got.status != http.StatusBadRequest {
				t.Errorf("%s: %d %s", name, got.status, got.body)
			}
		}
	})
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	name := func(string, string) string { return "" }
	for what, c := range map[string]hosts.Config{
		"no store": {GitHub: w.gh, Name: name}, "no GitHub": {Store: w.s, Name: name}, "no names": {Store: w.s, GitHub: w.gh},
	} {
		if _, err := hosts.New(c); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}
