// SPDX-License-Identifier: MIT

package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"strings"

	"github.com/minifleet/minifleet/secret"
)

const signatureHeader = "X-Hub-Signature-256"

var (
	errSignature   = errors.New("the signature does not match: compare the webhook secret here and in the GitHub App's settings")
	errNoSignature = errors.New("want exactly one " + signatureHeader + " header, sha256= and 64 hex digits: set a webhook secret in the GitHub App's settings")
)

// claimedSignature reads the one accepted signature header. The older SHA-1
// header is never looked at.
func claimedSignature(h http.Header) ([]byte, error) {
	value, ok := single(h, signatureHeader)
	if !ok {
		return nil, errNoSignature
	}
	digits, ok := strings.CutPrefix(value, "sha256=")
	if !ok {
		return nil, errNoSignature
	}
	mac, err := hex.DecodeString(digits)
	if err != nil || len(mac) != sha256.Size {
		return nil, errNoSignature
	}
	return mac, nil
}

// signedByAny reports whether one of the secrets signed the body. It tries all of
// them whatever the outcome, so that its duration tells nothing.
func signedByAny(secrets []secret.Text, body, claimed []byte) bool {
	ok := false
	for _, s := range secrets {
		mac := hmac.New(sha256.New, []byte(s.Reveal()))
		mac.Write(body)
		if hmac.Equal(mac.Sum(nil), claimed) {
			ok = true
		}
	}
	return ok
}

// single returns the value of a header that is there exactly once.
func single(h http.Header, name string) (string, bool) {
	values := h.Values(name)
	if len(values) != 1 {
		return "", false
	}
	return values[0], true
}
