// SPDX-License-Identifier: MIT

package githubapp

import (
	"encoding/base64"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

// FuzzReadCredentials: whatever is taken is an App with a key that signs, and what is
// refused is in no error.
func FuzzReadCredentials(f *testing.F) {
	f.Fuzz(func(t *testing.T, body []byte) {
		c, err := readCredentials(body)
		if err != nil {
			if len(err.Error()) > 300 || c.ID != 0 || !c.PrivateKey.Empty() {
				t.Errorf("%+v, %v", c, err)
			}
			return
		}
		if _, err := newSigner(c.PrivateKey, time.Now); err != nil || c.ID <= 0 {
			t.Errorf("taken: App %d, %v", c.ID, err)
		}
		for _, text := range []string{c.Slug, c.Name, c.Owner, c.HTMLURL} {
			if printable(text, 1024) != text {
				t.Errorf("not fit for a terminal: %q", text)
			}
		}
	})
}

// FuzzCheckConfig holds the check to its word: whatever passes is base64 of JSON that
// names the runner and says that it is ephemeral, and nothing of a config is in an error.
func FuzzCheckConfig(f *testing.F) {
	f.Fuzz(func(t *testing.T, encoded string) {
		if err := CheckConfig(encoded, "a"); err != nil {
			if !slices.Contains([]error{errConfigForm, errNotOneJob, errOtherName}, err) { // as they are, with nothing added
				t.Fatalf("an error that may quote the config: %v", err)
			}
			return
		}
		outer, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			t.Fatal(err)
		}
		var files map[string][]byte
		if err := json.Unmarshal(outer, &files); err != nil {
			t.Fatal(err)
		}
		text := strings.ToLower(string(files[".runner"]))
		if !strings.Contains(text, "true") && !strings.Contains(text, `\u`) || !strings.Contains(text, "ephemeral") && !strings.Contains(text, `\u`) {
			t.Errorf("passed: %q", text)
		}
		if CheckConfig(encoded, "b") == nil {
			t.Error("it passes for a runner of another name, too")
		}
	})
}
