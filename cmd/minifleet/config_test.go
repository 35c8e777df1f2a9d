// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/config"
)

const goodConfig = `github:
  app_id: 7
  private_key: a key
  webhook_secret: a secret
admin: {token: a token}
pools:
  - name: mac
    labels: [self-hosted, macOS]
    scopes: [octo]
    image: sonoma
`

// check is `minifleet config check` of the text.
func check(t *testing.T, text string, getenv func(string) string) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "controller.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run(t.Context(), []string{"config", "check", path}, nil, &out, io.Discard, getenv)
	return out.String(), err
}

func TestConfigCheck(t *testing.T) {
	t.Parallel()
	out, err := check(t, goodConfig, nothing)
	if err != nil || !strings.Contains(out, "is good: App 7 at https://api.github.com, pools mac") {
		t.Fatalf("%q %v", out, err)
	}
	pulled := strings.Replace(goodConfig, "webhook_secret: a secret", "deliveries: pull", 1)
	if out, err := check(t, pulled, nothing); err != nil {
		t.Errorf("without a secret that nothing needs: %q %v", out, err)
	}
	for name, test := range map[string]struct {
		old, new string // what is changed of the good file
		want     []string
	}{
		"unknown key":               {"app_id: 7", "app_id: 7\n  app_idea: 8", []string{":3:3:", "app_idea"}},
		"unknown key at the top":    {"pools:", "ponds: []\npools:", []string{":6:1:", "ponds"}},
		"unknown key of a pool":     {"image: sonoma", "image: sonoma\n    colour: red", []string{":11:5:", "colour"}},
		"key given twice":           {"app_id: 7", "app_id: 7\n  app_id: 8", []string{":3:3:", "app_id"}},
		"not YAML":                  {"github:", "github: [", []string{".yaml:"}},
		"text for a number":         {"app_id: 7", "app_id: seven", []string{":2:11:", "want an integer"}},
		"number for a list":         {"[self-hosted, macOS]", "7", []string{":8:13:", "sequence"}},
		"list for a section":        {"admin: {token: a token}", "admin: [a]", []string{":5:8:", "section"}},
		"duration without a unit":   {"pools:", "timing: {poll: 20}\npools:", []string{":6:16:", "want a duration"}},
		"duration of words":         {"pools:", "timing: {poll: soon}\npools:", []string{":6:16:", `"soon" is not a duration`}},
		"two documents":             {"pools:", "---\npools:", []string{"more than one YAML document"}},
		"no App":                    {"app_id: 7", "", []string{"github.app_id is missing", "MINIFLEET_GITHUB_APP_ID"}},
		"no key":                    {"private_key: a key", "", []string{"github.private_key or github.private_key_file"}},
		"no webhook secret":         {"webhook_secret: a secret", "", []string{"github.webhook_secret or github.webhook_secret_file is required"}},
		"empty webhook secret":      {"webhook_secret: a secret", `webhook_secret: ""`, []string{"github.webhook_secret or github.webhook_secret_file is required"}},
		"no operator's token":       {"admin: {token: a token}", "", []string{"admin.token or admin.token_file"}},
		"secret and its file":       {"webhook_secret: a secret", "webhook_secret: a secret\n  webhook_secret_file: x", []string{"both set"}},
		"secret's file is missing":  {"webhook_secret: a secret", "webhook_secret_file: none", []string{"github.webhook_secret_file", "no such file"}},
		"no pools":                  {goodConfig[strings.Index(goodConfig, "pools:"):], "", []string{"pools: at least one"}},
		"pool without a name":       {"name: mac", "name: ''", []string{"pools[0].name is missing"}},
		"pool's name":               {"name: mac", "name: Big Mac", []string{`pool "Big Mac"`, "lower-case"}},
		"pool without labels":       {"labels: [self-hosted, macOS]", "labels: []", []string{"label"}},
		"pool without scopes":       {"scopes: [octo]", "scopes: []", []string{"scope"}},
		"scope":                     {"scopes: [octo]", "scopes: [octo/a/b]", []string{`pool "mac"`, "octo/a/b"}},
		"image":                     {"image: sonoma", "image: ../sonoma", []string{`pool "mac"`, `"../sonoma"`}},
		"no image":                  {"image: sonoma", "", []string{"pools[0].image is missing"}},
		"pool twice":                {"  - name: mac", "  - {name: mac, labels: [a], scopes: [octo], image: b}\n  - name: mac", []string{`pool "mac" stands twice`}},
		"negative number":           {"image: sonoma", "image: sonoma\n    max_runners: -1", []string{"must not be negative"}},
		"more standby than max":     {"image: sonoma", "image: sonoma\n    max_runners: 1\n    standby: 2", []string{"standby 2 is more than max_runners 1"}},
		"address without a port":    {"pools:", "webhook: {address: localhost}\npools:", []string{"webhook.address", "host:port"}},
		"agents in the clear":       {"pools:", "agents: {address: \"0.0.0.0:8443\"}\npools:", []string{"agents.address", "not loopback", "agents.cert_file"}},
		"agents on any interface":   {"pools:", "agents: {address: \":8443\"}\npools:", []string{"agents.address", "not loopback"}},
		"agents by name":            {"pools:", "agents: {address: \"mini.example.com:8443\"}\npools:", []string{"agents.address", "not loopback"}},
		"operators in the clear":    {"{token: a token}", "{token: a token, address: \"10.0.0.1:8090\"}", []string{"admin.address", "not loopback"}},
		"certificate without key":   {"pools:", "agents: {cert_file: c.pem}\npools:", []string{"agents: cert_file and key_file go together"}},
		"log level":                 {"pools:", "log_level: loud\npools:", []string{`log_level "loud"`}},
		"log format":                {"pools:", "log_format: xml\npools:", []string{`log_format "xml"`}},
		"several at once":           {"private_key: a key\n  webhook_secret: a secret", "", []string{"github.private_key", "github.webhook_secret"}},
		"webhook in the clear":      {"pools:", "webhook: {address: \"0.0.0.0:8080\"}\npools:", []string{"webhook.address", "behind_proxy"}},
		"scale set":                 {"image: sonoma", "image: sonoma\n    demand: scale_set", nil},
		"name without a scale set":  {"image: sonoma", "image: sonoma\n    scale_set: macs", []string{"scale_set is set and demand is not"}},
		"unknown source of demand":  {"image: sonoma", "image: sonoma\n    demand: polling", []string{`demand is "polling"`, "webhook or scale_set"}},
		"scale set's scopes":        {"scopes: [octo]", "scopes: [octo, more]\n    demand: scale_set", []string{"2 scopes"}},
		"scale set's labels":        {"  - name: mac", "  - {name: set, labels: [x, macOS], scopes: [octo/demo], image: b, demand: scale_set}\n  - name: mac", []string{`share the label "macos"`}},
		"webhook behind a proxy":    {"pools:", "webhook: {address: \"0.0.0.0:8080\", behind_proxy: true}\npools:", nil},
		"deliveries of another way": {"app_id: 7", "app_id: 7\n  deliveries: fetch", []string{"github.deliveries", "push or pull"}},
		"no share for polls":        {"app_id: 7", "app_id: 7\n  poll_percent: 0", []string{"github.poll_percent"}},
		"all for polls":             {"app_id: 7", "app_id: 7\n  poll_percent: 91", []string{"github.poll_percent"}},
		"redelivery all the time":   {"pools:", "timing: {redelivery: 1ms}\npools:", []string{"timing.redelivery", "at least 1s"}},
		"pull all the time":         {"pools:", "timing: {pull: 1ms}\npools:", []string{"timing.pull", "at least 1s"}},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(goodConfig, test.old, test.new, 1)
			if text == goodConfig {
				t.Fatalf("%q is not in the good file", test.old)
			}
			out, err := check(t, text, nothing)
			if (err == nil) != (test.want == nil) || (err != nil && out != "") {
				t.Fatalf("%q %v", out, err)
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "controller.yaml") {
					t.Errorf("%v, want the file's name and %q in it", err, part)
				}
			}
			for _, secret := range []string{"a secret", "a token", "a key"} {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("the error tells %q: %v", secret, err)
				}
			}
		})
	}
}

func TestServeRefusesToStartWithoutWebhookSecret(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.secrets = ""
	var out bytes.Buffer
	err := run(t.Context(), []string{"serve", "--config", s.config()}, nil, &out, io.Discard, nothing)
	if err == nil || !strings.Contains(err.Error(), "github.webhook_secret or github.webhook_secret_file is required") || out.Len() > 0 {
		t.Errorf("%v, said %q", err, &out)
	}
	if s.read("state.db") != "" {
		t.Error("a database was made all the same")
	}
}

func TestEnvironmentWinsOverFile(t *testing.T) {
	t.Parallel()
	without := strings.NewReplacer("app_id: 7", "", "webhook_secret: a secret", "").Replace(goodConfig)
	for name, test := range map[string]struct {
		text string
		env  []string
		want string // of the output, or of the error after "error:"
	}{
		"over a value":         {goodConfig, []string{"MINIFLEET_GITHUB_APP_ID", "99"}, "App 99"},
		"over a default":       {goodConfig, []string{"MINIFLEET_GITHUB_URL", "https://git.example.com/api/v3"}, "at https://git.example.com/api/v3"},
		"for what is missing":  {without, []string{"MINIFLEET_GITHUB_APP_ID", "5", "MINIFLEET_GITHUB_WEBHOOK_SECRET", "x"}, "App 5"},
		"not an integer":       {goodConfig, []string{"MINIFLEET_GITHUB_APP_ID", "many"}, `error:MINIFLEET_GITHUB_APP_ID: "many" is not an integer`},
		"not a duration":       {goodConfig, []string{"MINIFLEET_TIMING_POLL", "20"}, `error:MINIFLEET_TIMING_POLL: "20" is not a duration`},
		"checked like a value": {goodConfig, []string{"MINIFLEET_AGENTS_ADDRESS", "0.0.0.0:1"}, `error:agents.address "0.0.0.0:1" is not loopback`},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := check(t, test.text, variables(test.env...))
			part, wrong := strings.CutPrefix(test.want, "error:")
			if wrong && (err == nil || !strings.Contains(err.Error(), part)) {
				t.Errorf("%v, want %q in it", err, part)
			}
			if !wrong && (err != nil || !strings.Contains(out, part)) {
				t.Errorf("%q %v, want %q", out, err, part)
			}
		})
	}
}

// keysOf lists the yaml keys of a struct by reflection, without the help of the
// package that prints them.
func keysOf(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		if !f.IsExported() {
			continue // of a flag, and not of the file
		}
		key := prefix + f.Tag.Get("yaml")
		out = append(out, key)
		switch {
		case f.Type.Kind() == reflect.Struct && f.Type.Field(0).Tag.Get("yaml") != "":
			out = append(out, keysOf(f.Type, key+".")...)
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			out = append(out, keysOf(f.Type.Elem(), key+"[].")...)
		}
	}
	return out
}

func TestHelpListsEveryKey(t *testing.T) {
	t.Parallel()
	want := keysOf(reflect.TypeFor[settings](), "")
	if len(want) < 40 || !slices.Contains(want, "pools[].limits.booting") {
		t.Fatalf("the test finds only %v", want)
	}
	for _, args := range [][]string{{"serve", "--help"}, {"config", "keys"}} {
		var out bytes.Buffer
		if err := run(t.Context(), args, nil, &out, io.Discard, nothing); err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		rows := map[string]string{}
		for line := range strings.Lines(out.String()) {
			if words := strings.Fields(line); len(words) > 0 {
				rows[words[0]] = line
			}
		}
		for _, key := range want {
			if rows[key] == "" {
				t.Errorf("%v does not give %s a line", args, key)
			}
		}
		for _, k := range config.Describe[settings](envPrefix) {
			if !strings.Contains(rows[k.Name], k.Default) || !strings.Contains(rows[k.Name], k.Help) || (k.Help == "" && k.Type != "section") {
				t.Errorf("%v: the line of %s lacks its default %q or what it means: %q", args, k.Name, k.Default, rows[k.Name])
			}
		}
	}
}

func TestHelp(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want []string
	}{
		{[]string{"--help"}, []string{"serve", "dev", "get", "host token", "config check"}},
		{[]string{"get", "--help"}, []string{"--token-file", "minifleet get explain", "wide (more of runners) or json"}},
		{[]string{"dev", "--help"}, []string{"--runner", "--demo", "--keep", "no isolation"}},
		{[]string{"serve", "--help"}, []string{"--config", "MINIFLEET_GITHUB_APP_ID"}},
	} {
		var out bytes.Buffer
		if err := run(t.Context(), test.args, nil, &out, io.Discard, nothing); err != nil {
			t.Errorf("%v: %v", test.args, err)
		}
		for _, part := range test.want {
			if !strings.Contains(out.String(), part) {
				t.Errorf("%v lacks %q:\n%s", test.args, part, &out)
			}
		}
	}
	var out bytes.Buffer
	if err := run(t.Context(), []string{"--version"}, nil, &out, io.Discard, nothing); err != nil || strings.TrimSpace(out.String()) == "" {
		t.Errorf("--version: %q %v", out.String(), err)
	}
}
