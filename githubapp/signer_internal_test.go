// SPDX-License-Identifier: MIT

package githubapp

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v4"

	"github.com/minifleet/minifleet/secret"
)

// Of two identical JWTs within one second GitHub answers the second with a 404.
func TestNoTwoJWTsAreAlike(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	s, err := newSigner(secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}))), func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for range 5 {
		token, err := s.Sign(&jwt.RegisteredClaims{Issuer: "1"})
		if err != nil {
			t.Fatal(err)
		}
		if seen[token] {
			t.Fatal("two JWTs of one second are alike")
		}
		seen[token] = true
	}
}
