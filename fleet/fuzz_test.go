// SPDX-License-Identifier: MIT

package fleet_test

import (
	"strings"
	"testing"

	"github.com/minifleet/minifleet/fleet"
)

// FuzzParseScope lets nothing become a scope that would change the meaning of a URL.
func FuzzParseScope(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		s, err := fleet.ParseScope(text)
		if err != nil {
			if !s.IsZero() {
				t.Errorf("%q is refused, and yet %+v", text, s)
			}
			return
		}
		if s.IsZero() || s.String() != text || strings.ContainsAny(text, "?#%\\ \n\r\x00") || strings.Count(text, "/") > 1 || strings.HasSuffix(text, "/..") {
			t.Errorf("%q is taken as %+v", text, s)
		}
		if !s.Covers(s.Owner, s.Repo) || s.Repo != "" && s.Covers(s.Owner, s.Repo+"x") || s.Covers(s.Owner+"x", s.Repo) {
			t.Errorf("%+v covers what it should not, or not itself", s)
		}
	})
}
