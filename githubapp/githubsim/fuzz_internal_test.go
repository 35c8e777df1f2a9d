// SPDX-License-Identifier: MIT

package githubsim

import (
	"testing"
	"time"
)

func FuzzParseJWT(f *testing.F) {
	for _, seed := range []string{"", "a.b.c", "e30.e30.", "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOjcsImV4cCI6MX0.AAAA", "eyJhbGciOiJub25lIn0.eyJpc3MiOiI3In0."} {
		f.Add(seed)
	}
	keys := newKeyPool(1)
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
	for _, seed := range []string{"", ">=2026-01-02", "<2026-01-02T03:04:05Z", "2026-01-01..2026-02-01", "*..2026-02-01", "..", ">=", "....", "*..*"} {
		f.Add(seed)
	}
	f.Fuzz(func(_ *testing.T, text string) {
		if match, bad := createdFilter(text); bad == nil {
			match(time.Unix(0, 0))
		}
	})
}
