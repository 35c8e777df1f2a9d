// SPDX-License-Identifier: MIT

package states

import "testing"

// FuzzParseAbout holds a state.json to what can be a state's name.
func FuzzParseAbout(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := parseAbout(b)
		if err != nil {
			if a != (about{}) {
				t.Fatalf("refused, and yet %+v", a)
			}
			return
		}
		name, err := a.name()
		if a.Bytes < 0 || err == nil && !looksLikeState(name) {
			t.Fatalf("%+v got through as %q", a, name)
		}
	})
}
