// SPDX-License-Identifier: MIT

package githubapp

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v4"

	"github.com/minifleet/minifleet/secret"
)

// GitHub refuses a token issued in its future or that ends more than ten minutes
// from its now. Both ends leave room for a time of GitHub's that is not known well.
const (
	jwtBackdate = time.Minute
	jwtLife     = 5 * time.Minute
)

// signer signs the App's JWTs. It adds a random id: of two identical JWTs within
// one second GitHub answers the second with a 404.
type signer struct {
	key *rsa.PrivateKey
	now func() time.Time
}

func newSigner(pem secret.Text, now func() time.Time) (*signer, error) {
	key, err := jwt.ParseRSAPrivateKeyFromPEM([]byte(pem.Reveal()))
	if err != nil { // which is left out: it may quote the key
		return nil, errors.New("private key: not the PEM of an RSA key (PKCS #1 or PKCS #8): give the file that GitHub offers for download")
	}
	return &signer{key: key, now: now}, nil
}

// Sign implements ghinstallation.Signer. Of the claims it keeps the issuer.
func (s *signer) Sign(claims jwt.Claims) (string, error) {
	given, ok := claims.(*jwt.RegisteredClaims)
	if !ok {
		return "", fmt.Errorf("claims are a %T", claims)
	}
	now := s.now()
	return jwt.NewWithClaims(jwt.SigningMethodRS256, jwt.RegisteredClaims{
		Issuer:    given.Issuer,
		ID:        rand.Text(),
		IssuedAt:  jwt.NewNumericDate(now.Add(-jwtBackdate)),
		ExpiresAt: jwt.NewNumericDate(now.Add(jwtLife)),
	}).SignedString(s.key)
}
