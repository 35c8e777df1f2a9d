// SPDX-License-Identifier: MIT

package protocol

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"strings"

	"github.com/minifleet/minifleet/secret"
)

const tokenPrefix = "mfe1."

// ErrEnrolment marks a text that is not an enrolment token. It never quotes it.
var ErrEnrolment = errors.New("not an enrolment token: one begins with " + tokenPrefix + " and comes whole from the controller")

type tokenWire struct {
	Token string `json:"t"`
	Pin   string `json:"p,omitempty"`
}

// FormatEnrolment writes, as one word, what an operator carries from the
// controller to a new host: the one-time token and the pin of the certificate that
// the controller will show, "" where the public PKI vouches for it.
func FormatEnrolment(token secret.Text, pin string) secret.Text {
	b, _ := json.Marshal(tokenWire{token.Reveal(), pin}) // strings cannot fail
	return secret.New(tokenPrefix + base64.RawURLEncoding.EncodeToString(b))
}

// ParseEnrolment reads what FormatEnrolment wrote.
func ParseEnrolment(t secret.Text) (token secret.Text, pin string, err error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(t.Reveal()), tokenPrefix)
	if !ok || len(text) > 1000 {
		return secret.Text{}, "", ErrEnrolment
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return secret.Text{}, "", ErrEnrolment
	}
	var w tokenWire
	if json.Unmarshal(b, &w) != nil || w.Token == "" {
		return secret.Text{}, "", ErrEnrolment
	}
	if raw, err := hex.DecodeString(w.Pin); err != nil || (len(raw) != 0 && len(raw) != sha256.Size) {
		return secret.Text{}, "", ErrEnrolment
	}
	return secret.New(w.Token), strings.ToLower(w.Pin), nil
}

// Pin names a certificate by its public key, so that it may be renewed: the hex
// SHA-256 of its SubjectPublicKeyInfo (RFC 7469's form of a pin).
func Pin(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}
