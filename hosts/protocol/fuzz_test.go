// SPDX-License-Identifier: MIT

package protocol_test

import (
	"encoding/hex"
	"errors"
	"strings"
	"testing"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

// FuzzParseEnrolment holds what passes for an enrolment token to a token that survives
// a round trip and a pin that is none or whole.
func FuzzParseEnrolment(f *testing.F) {
	f.Fuzz(func(t *testing.T, text string) {
		token, pin, err := protocol.ParseEnrolment(secret.New(text))
		if err != nil {
			if !errors.Is(err, protocol.ErrEnrolment) || err.Error() != protocol.ErrEnrolment.Error() || !token.Empty() || pin != "" {
				t.Fatalf("refused with %v, and yet pin %q", err, pin)
			}
			return
		}
		if raw, err := hex.DecodeString(pin); token.Empty() || err != nil || len(raw) != 0 && len(raw) != 32 || pin != strings.ToLower(pin) {
			t.Fatalf("pin %q got through", pin)
		}
		again, againPin, err := protocol.ParseEnrolment(protocol.FormatEnrolment(token, pin))
		if err != nil || !again.Equal(token) || againPin != pin {
			t.Errorf("%q does not survive a round trip: %v", text, err)
		}
	})
}
