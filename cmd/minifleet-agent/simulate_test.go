// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// fleetOf is a controller that wants one armed runner of every host, and calls done
// when all of them have run a job.
func fleetOf(t *testing.T, hosts int, done func()) *httptest.Server {
	t.Helper()
	var mu sync.Mutex
	names := map[string]string{} // by credential hash
	jobs := map[string]bool{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		name := names[secret.New(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")).Hash()]
		reply := func(v any) { _ = json.NewEncoder(w).Encode(v) }
		switch {
		case r.URL.Path == protocol.PathEnrol:
			var in protocol.Enrol
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Token != "many" {
				t.Errorf("enrolment %+v: %v", in, err)
			}
			names[in.CredentialHash] = in.Name
			reply(protocol.Enrolled{Host: in.Name, Name: in.Name, Site: "s"})
		case name == "":
			w.WriteHeader(http.StatusUnauthorized)
			reply(protocol.Error{Code: protocol.CodeCredential})
		case r.URL.Path == protocol.PathHello:
			reply(protocol.Welcome{Site: "s", Epoch: 1, PollSeconds: 1, LeaseSeconds: 600})
		case r.URL.Path == protocol.PathDesired:
			if r.URL.Query().Get("revision") == "1" {
				mu.Unlock()
				<-r.Context().Done()
				mu.Lock()
				return
			}
			reply(protocol.Desired{Site: "s", Epoch: 1, Revision: 1, Runners: []protocol.Desire{
				{ID: name + "-r", Wanted: protocol.WantArmed, Scope: "octo", Pool: "p", Image: "i"},
			}})
		case r.URL.Path == protocol.PathReport:
			var in protocol.Report
			if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
				t.Error(err)
			}
			for _, v := range in.Runners {
				if v.Observed == "gone" && v.Result == "succeeded" {
					jobs[v.ID] = true
				}
			}
			if len(jobs) == hosts {
				done()
			}
			w.WriteHeader(http.StatusNoContent)
		default:
			reply(protocol.Minted{Name: name, JITConfig: "config"})
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func TestSimulate(t *testing.T) {
	for name, extra := range map[string][]string{
		"in memory": nil, "with credentials": {"--credentials-dir", t.TempDir()},
		"with receipts": {"--receipts", filepath.Join(t.TempDir(), "receipts.jsonl")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s := fleetOf(t, 20, cancel)
			token := protocol.FormatEnrolment(secret.New("many"), "")
			var out bytes.Buffer
			args := append([]string{
				"simulate", "--controller", s.URL, "--hosts", "20", "--slots", "1",
				"--boot", "1ms", "--register", "1ms", "--job", "5ms", "--stop", "1ms", "--jitter", "0.5",
			}, extra...)
			env := map[string]string{"MINIFLEET_AGENT_ENROLMENT_TOKEN": token.Reveal()}
			var complaints bytes.Buffer
			if err := run(ctx, args, nil, &out, &complaints, func(k string) string { return env[k] }); err != nil {
				t.Fatalf("%v\n%s", err, complaints.String())
			}
			if file := slices.Index(args, "--receipts"); file >= 0 {
				checkReceipts(t, args[file+1], 20)
			}
			if !strings.Contains(out.String(), "hosts 20") || !strings.Contains(out.String(), "jobs 20") {
				t.Errorf("the summary is %q", out.String())
			}
		})
	}
}

// checkReceipts wants each step of each VM, in order.
func checkReceipts(t *testing.T, file string, vms int) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	steps := map[string][]string{}
	last := map[string]time.Time{}
	for lines := json.NewDecoder(f); ; {
		var r agent.Receipt
		if err := lines.Decode(&r); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if r.Runner != r.Host+"-r" || r.At.Before(last[r.Runner]) {
			t.Errorf("%+v after %s", r, last[r.Runner])
		}
		steps[r.Runner], last[r.Runner] = append(steps[r.Runner], r.Step), r.At
	}
	if len(steps) != vms {
		t.Errorf("receipts of %d VMs", len(steps))
	}
	for id, got := range steps {
		if want := []string{"assigned", "booted", "config", "idle", "busy", "finished", "ended"}; !slices.Equal(got, want) {
			t.Errorf("%s: %v", id, got)
		}
	}
}

func TestSimulateEndsWhenNoHostCanJoin(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(protocol.Error{Code: protocol.CodeToken, Message: "used up"})
	}))
	t.Cleanup(s.Close)
	token := protocol.FormatEnrolment(secret.New("spent"), "")
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token.Reveal()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := call(t, nil, "simulate", "--controller", s.URL, "--hosts", "3", "--enrolment-token-file", file)
	if err == nil || !strings.Contains(err.Error(), "used up") {
		t.Errorf("it ended with %v", err)
	}
}
