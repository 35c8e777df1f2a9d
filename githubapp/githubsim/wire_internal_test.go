// SPDX-License-Identifier: MIT

package githubsim

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/secret"
)

func TestWorkflowTravels(t *testing.T) {
	w := Workflow{Repo: "octo/demo", Event: "push", Jobs: []JobSpec{{
		Name: "build", Labels: []string{"vm"}, Env: map[string]string{"A": "1"}, Secrets: map[string]secret.Text{"KEY": secret.New("hunter2")},
		Steps: []Step{{Name: "one", Run: "true", Env: map[string]string{"B": "2"}}}, Gated: true,
	}}}
	b, err := json.Marshal(toWire(w))
	if err != nil {
		t.Fatal(err)
	}
	var wire workflowWire
	if err := json.Unmarshal(b, &wire); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w, wire.workflow(), cmp.Comparer(secret.Text.Equal)); diff != "" {
		t.Error(diff)
	}
	if b, err := json.Marshal(w); err != nil || strings.Contains(string(b), "hunter2") {
		t.Errorf("a workflow shows its secret: %s, %v", b, err)
	}
}

func TestSettingsTravel(t *testing.T) {
	s := Settings{
		Listen: "127.0.0.1:0", AppID: 7, PrivateKey: secret.New("key"), WebhookSecret: secret.New("hunter2"), Flow: FlowMigrate, Kind: true,
		Timing: Timing{Poll: 1, BusyLag: -1}, Installations: []Installation{{Account: "octo", Repositories: []string{"demo"}}},
	}
	var b bytes.Buffer
	if err := s.Encode(&b); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSettings(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, got, cmp.Comparer(secret.Text.Equal)); diff != "" {
		t.Error(diff)
	}
	if b, err := json.Marshal(s); err != nil || strings.Contains(string(b), "hunter2") {
		t.Errorf("settings show their secret: %s, %v", b, err)
	}
}
