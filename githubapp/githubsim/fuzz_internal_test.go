// SPDX-License-Identifier: MIT

package githubsim

import (
	"testing"
	"time"
)

func FuzzParseJWT(f *testing.F) {
	keys := newKeyPool(1, false)
	key, err := keys.take()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, token string) {
		j, err := parseJWT(token)
		if err == nil && j.verify(&key.PublicKey, "RS256", "PS256") == nil {
			t.Errorf("believed %q", token)
		}
	})
}

func FuzzCreatedFilter(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		match, bad := createdFilter(text)
		if (match == nil) == (bad == nil) {
			t.Fatalf("%q: a filter %t, a refusal %v", text, match != nil, bad)
		}
		if match != nil {
			match(time.Unix(0, 0))
		}
	})
}
