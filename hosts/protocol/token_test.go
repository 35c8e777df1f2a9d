// SPDX-License-Identifier: MIT

package protocol_test

import (
	"strings"
	"testing"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/secret"
)

func TestEnrolmentRoundTrip(t *testing.T) {
	for name, pin := range map[string]string{"pinned": strings.Repeat("0a", 32), "not pinned": ""} {
		t.Run(name, func(t *testing.T) {
			token := secret.Generate()
			got, gotPin, err := protocol.ParseEnrolment(protocol.FormatEnrolment(token, pin))
			if err != nil || !got.Equal(token) || gotPin != pin {
				t.Errorf("got pin %q, error %v, token equal %t", gotPin, err, got.Equal(token))
			}
		})
	}
}

func TestParseEnrolmentRefuses(t *testing.T) {
	good := protocol.FormatEnrolment(secret.New("hunter2"), "").Reveal()
	for name, text := range map[string]string{
		"empty":        "",
		"bare token":   "hunter2",
		"cut":          good[:len(good)-4],
		"not base64":   "mfe1.hunter2!",
		"no token":     protocol.FormatEnrolment(secret.New(""), "").Reveal(),
		"short pin":    protocol.FormatEnrolment(secret.New("hunter2"), "0a").Reveal(),
		"pin not hex":  protocol.FormatEnrolment(secret.New("hunter2"), strings.Repeat("zz", 32)).Reveal(),
		"far too long": "mfe1." + strings.Repeat("A", 1<<16),
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := protocol.ParseEnrolment(secret.New(text))
			if err == nil {
				t.Fatal("taken")
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows the token: %v", err)
			}
		})
	}
}
