// SPDX-License-Identifier: MIT

package agent_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// TestReach: the controller is looked at as an agent would, with no secret sent.
func TestReach(t *testing.T) {
	day := time.Date(2026, 2, 9, 10, 0, 0, 0, time.UTC)
	code := protocol.CodeCredential
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != protocol.PathDesired || r.Method != http.MethodGet || r.Header.Get("Authorization") != "" {
			t.Errorf("%s %s with %v", r.Method, r.URL, r.Header)
		}
		w.Header().Set("Date", day.Format(http.TimeFormat))
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(protocol.Error{Code: code})
	}))
	defer s.Close()
	s.Config.ErrorLog = nil
	pin := protocol.Pin(s.Certificate())
	other := strings.Repeat("ab", 32)
	folder := func(identity string) string {
		dir := t.TempDir()
		if identity != "" {
			if err := os.WriteFile(filepath.Join(dir, "identity.json"), []byte(identity), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	token := func(pin string) secret.Text { return protocol.FormatEnrolment(secret.New("once"), pin) }
	for name, tt := range map[string]struct {
		cfg  agent.Config
		want agent.Reached
		err  string
	}{
		"by the token's pin":    {agent.Config{StateDir: folder(""), EnrolmentToken: token(pin)}, agent.Reached{Trust: "its certificate is the pinned one", Token: true, Date: day}, ""},
		"by the identity's pin": {agent.Config{StateDir: folder(`{"host":"h","name":"h","site":"s","pin":"` + pin + `"}`)}, agent.Reached{Trust: "its certificate is the pinned one", Enrolled: true, Date: day}, ""},
		"the identity counts":   {agent.Config{StateDir: folder(`{"host":"h","name":"h","site":"s","pin":"` + other + `"}`), EnrolmentToken: token(pin)}, agent.Reached{}, "pins"},
		"another's pin":         {agent.Config{StateDir: folder(""), EnrolmentToken: token(other)}, agent.Reached{}, "pins"},
		"no pin":                {agent.Config{StateDir: folder("")}, agent.Reached{}, "certificate"},
		"no token":              {agent.Config{StateDir: folder(""), EnrolmentToken: secret.New("words")}, agent.Reached{}, "enrolment_token"},
		"a broken identity":     {agent.Config{StateDir: folder("{")}, agent.Reached{}, "state_dir"},
	} {
		t.Run(name, func(t *testing.T) {
			tt.cfg.Controller = s.URL
			got, err := agent.Reach(t.Context(), tt.cfg)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "once") {
					t.Errorf("error %v, want %q in it", err, tt.err)
				}
			} else if got != tt.want || err != nil {
				t.Errorf("%+v, %v; want %+v", got, err, tt.want)
			}
			if names, err := os.ReadDir(tt.cfg.StateDir); err != nil || len(names) > 1 {
				t.Errorf("state folder: %v, %v", names, err)
			}
		})
	}
	code = "other"
	_, err := agent.Reach(t.Context(), agent.Config{Controller: s.URL, StateDir: t.TempDir(), EnrolmentToken: token(pin)})
	if err == nil || !strings.Contains(err.Error(), "give the address of agents") {
		t.Errorf("another listener: %v", err)
	}
}
