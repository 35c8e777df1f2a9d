// SPDX-License-Identifier: MIT

// Package secret holds values that must never reach a log, an error text or a
// file by accident: JIT configs, webhook secrets, credentials. A Text prints as
// [redacted] through every common route; only Reveal gives the value.
package secret

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
)

const redacted = "[redacted]"

// Text is a secret string. Its zero value is the empty secret. The value is kept
// behind a pointer, since fmt prints the fields of an unexported field without
// asking its methods.
type Text struct{ value *string }

// New wraps a value.
func New(value string) Text {
	if value == "" {
		return Text{}
	}
	return Text{value: &value}
}

// Generate returns a new random secret of 256 bits in URL-safe base64.
func Generate() Text {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand aborts the program instead
	return New(base64.RawURLEncoding.EncodeToString(b[:]))
}

// Reveal returns the value itself, for the one place that has to send or check it.
func (t Text) Reveal() string {
	if t.value == nil {
		return ""
	}
	return *t.value
}

// Empty reports whether the secret has no value.
func (t Text) Empty() bool { return t.value == nil }

// Equal compares two secrets in constant time.
func (t Text) Equal(other Text) bool {
	a, b := sha256.Sum256([]byte(t.Reveal())), sha256.Sum256([]byte(other.Reveal()))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// Hash returns the hex SHA-256 of the value, the form in which tokens are
// stored. It is fit for secrets of full entropy (Generate), not for passwords.
func (t Text) Hash() string {
	sum := sha256.Sum256([]byte(t.Reveal()))
	return hex.EncodeToString(sum[:])
}

func (t Text) String() string               { return redacted }
func (t Text) GoString() string             { return redacted }
func (t Text) Format(f fmt.State, _ rune)   { fmt.Fprint(f, redacted) }
func (t Text) LogValue() slog.Value         { return slog.StringValue(redacted) }
func (t Text) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (t Text) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }

// UnmarshalText reads the value as it stands, so that a Text can be a field of
// a configuration.
func (t *Text) UnmarshalText(b []byte) error {
	*t = New(string(b))
	return nil
}
