// SPDX-License-Identifier: MIT

package githubsim

import (
	"testing"
	"testing/synctest"
	"time"
)

// One installation cannot reach this limit over HTTP: its points of a minute run
// out first. Several installations of one organization's scope can.
func TestRegistrationLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLimits(false)
		for i := range registrationLimit {
			if a := l.register("octo"); a != nil {
				t.Fatalf("registration %d refused", i)
			}
		}
		a := l.register("octo")
		if a == nil || a.status != 429 || a.header.Get("Retry-After") != "300" {
			t.Fatalf("answer is %+v", a)
		}
		if a := l.register("octo/demo"); a != nil {
			t.Error("another scope is refused too")
		}
		time.Sleep(registrationRate)
		if a := l.register("octo"); a != nil {
			t.Error("still refused in the next window")
		}
	})
}
