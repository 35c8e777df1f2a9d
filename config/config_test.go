// SPDX-License-Identifier: MIT

package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/config"
	"github.com/minifleet/minifleet/secret"
)

type limits struct {
	Boot time.Duration `yaml:"boot" default:"5m" help:"time to boot"`
	Max  int           `yaml:"max" default:"7"`
}

type pool struct {
	Name   string      `yaml:"name" required:"true"`
	CPUs   int         `yaml:"cpus" default:"2"`
	Grace  limits      `yaml:"grace"`
	Key    secret.Text `yaml:"key"`
	KeyRef string      `yaml:"key_file"`
}

type settings struct {
	Address   string            `yaml:"address" default:"127.0.0.1:1" help:"where to listen"`
	Name      string            `yaml:"name" required:"true"`
	Copy      bool              `yaml:"copy"`
	On        bool              `yaml:"on" default:"true"`
	Rate      float64           `yaml:"rate" default:"0.5"`
	Labels    []string          `yaml:"labels"`
	Token     secret.Text       `yaml:"token"`
	TokenFile string            `yaml:"token_file"`
	Limits    limits            `yaml:"limits"`
	Pools     []pool            `yaml:"pools"`
	Env       map[string]string `yaml:"env"`
}

func (s settings) Validate() error {
	if s.Address == "nowhere" {
		return errors.New("address: nowhere is no place")
	}
	return nil
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func environment(vars map[string]string) func(string) string {
	return func(k string) string { return vars[k] }
}

func TestLoadMergesDefaultsFileAndEnvironment(t *testing.T) {
	path := write(t, `
name: from-file
on: false
labels: [a, b]
limits: {max: 0}
pools:
  - name: p1
    grace: {boot: 1s}
  - name: p2
    cpus: 4
env: {A: b}
`)
	got, err := config.Load[settings](path, "X", environment(map[string]string{
		"X_ADDRESS": "127.0.0.1:2", "X_LIMITS_BOOT": "90s", "X_LABELS": "c, d", "X_COPY": "true",
	}))
	if err != nil {
		t.Fatal(err)
	}
	want := settings{
		Address: "127.0.0.1:2", Name: "from-file", Copy: true, Rate: 0.5, Labels: []string{"c", "d"},
		Limits: limits{Boot: 90 * time.Second, Max: 0},
		Pools: []pool{
			{Name: "p1", CPUs: 2, Grace: limits{Boot: time.Second, Max: 7}},
			{Name: "p2", CPUs: 4, Grace: limits{Boot: 5 * time.Minute, Max: 7}},
		},
		Env: map[string]string{"A": "b"},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(secret.Text.Equal)); diff != "" {
		t.Error(diff)
	}
}

func TestLoadErrorsSayWhere(t *testing.T) {
	for name, tc := range map[string]struct {
		text string
		env  map[string]string
		want []string
	}{
		"unknown key":             {"name: a\nadress: b\n", nil, []string{"c.yaml:2:1:", `unknown field "adress"`}},
		"unknown key in a list":   {"name: a\npools:\n  - name: p\n    cpu: 3\n", nil, []string{"c.yaml:4:5:", `"cpu"`}},
		"wrong type":              {"name: a\nlimits:\n  max: many\n", nil, []string{"c.yaml:3:8:", "want an integer"}},
		"duration without a unit": {"name: a\nlimits:\n  boot: 30\n", nil, []string{"c.yaml:3:9:", "duration", "90s"}},
		"not a duration":          {"name: a\npools:\n  - name: p\n    grace: {boot: soon}\n", nil, []string{"c.yaml:4:19:", `"soon"`, "90s"}},
		"a list for a secret":     {"name: a\ntoken: [x]\n", nil, []string{"c.yaml:2:8:", "want a secret"}},
		"duration in the env":     {"name: a\n", map[string]string{"X_LIMITS_BOOT": "x"}, []string{"X_LIMITS_BOOT", `"x"`}},
		"bad boolean":             {"name: a\ncopy: perhaps\n", nil, []string{"c.yaml:2:7:", "true or false"}},
		"a list for a scalar":     {"name: [a]\n", nil, []string{"c.yaml:1:"}},
		"duplicate key":           {"name: a\nname: b\n", nil, []string{"c.yaml:2:1:"}},
		"not YAML":                {"name: a\n\t- :x\n", nil, []string{"c.yaml:2:"}},
		"two documents":           {"name: a\n---\nname: b\n", nil, []string{"more than one"}},
		"required":                {"copy: true\n", nil, []string{"name is missing", "X_NAME"}},
		"required in a list":      {"name: a\npools:\n  - cpus: 1\n", nil, []string{"pools[0].name is missing"}},
		"its own check":           {"name: a\naddress: nowhere\n", nil, []string{"no place"}},
		"secret twice":            {"name: a\ntoken: x\ntoken_file: y\n", nil, []string{"both set"}},
		"secret file missing":     {"name: a\ntoken_file: not-there\n", nil, []string{"token_file", "not-there"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Load[settings](write(t, tc.text), "X", environment(tc.env))
			if err == nil {
				t.Fatal("no error")
			}
			for _, w := range tc.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q lacks %q", err, w)
				}
			}
		})
	}
}

func TestNoErrorShowsASecret(t *testing.T) {
	for name, text := range map[string]string{
		"mistake beside it": "name: a\ntoken: hunter2\nadress: b\n",
		"mistake in it":     "name: a\ntoken: [hunter2]\n",
		"syntax beside it":  "name: a\ntoken: hunter2\n\t- x\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := config.Load[settings](write(t, text), "X", environment(nil))
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

func TestSecretsFromFiles(t *testing.T) {
	path := write(t, "name: a\ntoken_file: tok\npools: [{name: p, key_file: tok}]\n")
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "tok"), []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := config.Load[settings](path, "X", environment(nil))
	if err != nil {
		t.Fatal(err)
	}
	if got.Token.Reveal() != "s3cret" || got.Pools[0].Key.Reveal() != "s3cret" {
		t.Error("secrets were not read from the file")
	}
}

func TestWithoutAFile(t *testing.T) {
	got, err := config.Load[settings]("", "X", environment(map[string]string{"X_NAME": "n", "X_TOKEN": "t"}))
	if err != nil || got.Name != "n" || got.Token.Reveal() != "t" || got.Limits.Max != 7 || !got.On {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := config.Load[settings](write(t, ""), "X", environment(map[string]string{"X_NAME": "n"})); err != nil {
		t.Errorf("an empty file: %v", err)
	}
}

func TestHelpNamesEveryKey(t *testing.T) {
	var text strings.Builder
	if err := config.WriteHelp[settings](&text, "X"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"address", "127.0.0.1:1", "where to listen", "limits.boot", "5m", "pools[].name", "(required)", "token_file"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("help lacks %q:\n%s", want, text.String())
		}
	}
	for _, k := range config.Describe[settings]("X") {
		if k.Name == "limits.boot" && k.Env != "X_LIMITS_BOOT" {
			t.Errorf("variable of limits.boot is %q", k.Env)
		}
		if strings.HasPrefix(k.Name, "pools[]") && k.Env != "" {
			t.Errorf("%s claims the variable %s", k.Name, k.Env)
		}
	}
}
