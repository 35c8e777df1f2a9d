// SPDX-License-Identifier: MIT

package show_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/admin/admintest"
	"github.com/minifleet/minifleet/admin/show"
	"github.com/minifleet/minifleet/internal/keepport"
	"github.com/minifleet/minifleet/secret"
)

// answering runs a server that is no controller.
func answering(t *testing.T, status int, body string) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	controller := serve(t, admintest.Sample(), admintest.Pools())
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // the refused handshake
	secure.StartTLS()
	t.Cleanup(secure.Close)
	unknown := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.DNSError{Err: "no such host", Name: "nowhere.invalid", IsNotFound: true}
	}}}
	for name, c := range map[string]struct {
		options show.Options
		wants   []string
	}{
		"nothing listens":     {show.Options{Server: "http://" + keepport.Address(t), Kind: "jobs"}, []string{"is `minifleet serve` running there?", "http://127.0.0.1:"}},
		"unknown host name":   {show.Options{Server: "https://nowhere.invalid", Kind: "jobs", HTTP: unknown}, []string{"nowhere.invalid is not known", "check the server's address"}},
		"foreign certificate": {show.Options{Server: secure.URL, Kind: "jobs"}, []string{"certificate", "not trusted"}},
		"plain where TLS is": {
			show.Options{Server: strings.Replace(controller, "http:", "https:", 1), Kind: "jobs"},
			[]string{"speaks plain HTTP"},
		},
		"wrong token": {
			show.Options{Server: controller, Kind: "jobs", Token: secret.New("not-the-secret-token"), TokenSetting: "MINIFLEET_TOKEN"},
			[]string{"refuses the token", "set MINIFLEET_TOKEN"},
		},
		"not a controller":        {show.Options{Server: answering(t, 200, "<html>"), Kind: "jobs"}, []string{"is it the address of its operator API?"}},
		"not the API's 404":       {show.Options{Server: answering(t, 404, "404 page not found"), Kind: "hosts"}, []string{"answers 404", "is it the address"}},
		"escape in a refusal":     {show.Options{Server: answering(t, 500, `{"error":"bad \u001b[2J end"}`), Kind: "hosts"}, []string{"answers 500: bad \ufffd[2J end"}},
		"cursor that comes again": {show.Options{Server: answering(t, 200, `{"items":[],"next":"a"}`), Kind: "pools"}, []string{"repeats the cursor"}},
		"row of another type":     {show.Options{Server: answering(t, 200, `{"items":[3]}`), Kind: "pools"}, []string{"understand the answer"}},
		"bad filter value":        {show.Options{Server: controller, Kind: "jobs", Filters: show.Filters{State: []string{"done"}}}, []string{"answers 400", `"done"`, "waiting, queued"}},
		"two host states":         {show.Options{Server: controller, Kind: "hosts", Filters: show.Filters{State: []string{"online", "lost"}}}, []string{"answers 400", "online or unreachable"}},
		"unknown job":             {show.Options{Server: controller, Kind: "explain", ID: "99"}, []string{"job 99 is not known"}},
		"unknown runner":          {show.Options{Server: controller, Kind: "timeline", ID: "r-none"}, []string{`runner "r-none" is not known`}},
		"job id of letters":       {show.Options{Server: controller, Kind: "explain", ID: "r-busy"}, []string{`job id "r-busy"`, "get jobs"}},
		"no runner id":            {show.Options{Server: controller, Kind: "timeline"}, []string{`runner id ""`, "get runners"}},
		"runner id of dots":       {show.Options{Server: controller, Kind: "timeline", ID: "../jobs"}, []string{"get runners"}},
		"unknown kind":            {show.Options{Server: controller, Kind: "vms"}, []string{`"vms"`, "jobs, runners"}},
		"unknown output":          {show.Options{Server: controller, Kind: "jobs", Output: "yaml"}, []string{`"yaml"`, "table, wide or json"}},
		"negative limit":          {show.Options{Server: controller, Kind: "jobs", Limit: -1}, []string{"limit -1"}},
		"filter of another kind":  {show.Options{Server: controller, Kind: "pools", Filters: show.Filters{Phase: []string{"busy"}}}, []string{`"phase" is for runners, not for pools`}},
		"in the clear":            {show.Options{Server: "http://minifleet.example.com", Kind: "jobs"}, []string{"in the clear"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out, err := get(t, c.options)
			if err == nil {
				t.Fatalf("no error, and it prints %q", out)
			}
			for _, want := range c.wants {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error %q does not say %q", err, want)
				}
			}
			if out != "" || strings.Contains(err.Error(), "secret-token") {
				t.Errorf("it prints %q and says %q", out, err)
			}
		})
	}
}

func TestAMissingTokenIsNamed(t *testing.T) {
	t.Parallel()
	err := show.Get(t.Context(), show.Options{Server: "http://127.0.0.1:1", Kind: "jobs", TokenSetting: "MINIFLEET_TOKEN", Out: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "set MINIFLEET_TOKEN") {
		t.Errorf("got %v", err)
	}
}

// TestASilentServer covers both ways out of waiting for it.
func TestASilentServer(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	asked := make(chan struct{}, 2)
	silent := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	t.Cleanup(silent.Close)
	t.Cleanup(func() { close(release) })

	_, err := get(t, show.Options{Server: silent.URL, Kind: "jobs", HTTP: &http.Client{Timeout: 50 * time.Millisecond}})
	if err == nil || !strings.Contains(err.Error(), "no answer from") {
		t.Errorf("after the time-out: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- show.Get(ctx, show.Options{Server: silent.URL, Token: secret.New("t"), Kind: "jobs", Out: io.Discard})
	}()
	<-asked // of the first call, or of the second: either way it is under way or not begun
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("after the cancellation: %v", err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestAWriterThatFails(t *testing.T) {
	t.Parallel()
	url := serve(t, admintest.Sample(), admintest.Pools())
	for _, o := range []show.Options{{Kind: "jobs"}, {Kind: "jobs", Output: "json"}, {Kind: "explain", ID: "9"}, {Kind: "timeline", ID: "r-busy"}} {
		o.Server, o.Token, o.Out = url, secret.New(operatorToken), brokenPipe{}
		if err := show.Get(t.Context(), o); !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s %s: got %v", o.Kind, o.Output, err)
		}
	}
}
