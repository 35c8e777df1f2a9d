// SPDX-License-Identifier: MIT

package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/secret"
)

func TestNothingPrintsTheValue(t *testing.T) {
	s := secret.New("hunter2-the-value")
	type holder struct {
		Token secret.Text `json:"token"`
	}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "token", s, "holder", holder{s}, "pointer", &s)
	asJSON, err := json.Marshal(holder{s})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"%v": fmt.Sprintf("%v", s), "%+v of a struct": fmt.Sprintf("%+v", holder{s}), "%#v": fmt.Sprintf("%#v", holder{s}),
		"%s": fmt.Sprintf("%s", s), "%q": fmt.Sprintf("%q", s), "%x": fmt.Sprintf("%x", s), "slog": log.String(), "json": string(asJSON),
		"unexported": fmt.Sprintf("%+v %[1]v %#[1]v", struct{ t secret.Text }{s}),
		"error":      fmt.Errorf("bad token %v", s).Error(),
	} {
		if strings.Contains(text, "hunter2") || strings.Contains(text, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("%s shows the value: %s", name, text)
		}
		if name != "unexported" && !strings.Contains(text, "[redacted]") {
			t.Errorf("%s does not say [redacted]: %s", name, text)
		}
	}
}

func TestEqual(t *testing.T) {
	a := secret.Generate()
	if !a.Equal(secret.New(a.Reveal())) {
		t.Error("a secret differs from itself")
	}
	if a.Equal(secret.Generate()) || a.Equal(secret.Text{}) {
		t.Error("different secrets are equal")
	}
	if a.Hash() == secret.Generate().Hash() || len(a.Hash()) != 64 {
		t.Error("hash is not a hash of the value")
	}
}
