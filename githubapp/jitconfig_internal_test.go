// SPDX-License-Identifier: MIT

package githubapp

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
)

// FuzzCheckConfig holds the check to its word: whatever passes is base64 of JSON
// that names the runner and says that it is ephemeral.
func FuzzCheckConfig(f *testing.F) {
	encode := func(runner string) string {
		b, err := json.Marshal(map[string][]byte{".runner": []byte(runner)})
		if err != nil {
			f.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(b)
	}
	f.Add(encode(`{"AgentName":"a","Ephemeral":"True"}`))
	f.Add(encode("\xef\xbb\xbf" + `{"AgentName":"a","Ephemeral":true}`))
	f.Add(encode(`{"AgentName":"a","Ephemeral":"False"}`))
	f.Add(encode(`{"AgentName":"b","Ephemeral":"True"}`))
	f.Add(encode(`null`))
	f.Add("e30=")
	f.Add("?")
	f.Fuzz(func(t *testing.T, encoded string) {
		if err := checkConfig(encoded, "a"); err != nil {
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
	})
}
