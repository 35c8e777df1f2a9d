// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// claims are the claims of App JWTs and of runners' client assertions.
type claims struct {
	Issuer    flexString `json:"iss"`
	Subject   string     `json:"sub"`
	Audience  string     `json:"aud"`
	IssuedAt  float64    `json:"iat"`
	NotBefore float64    `json:"nbf"`
	Expires   float64    `json:"exp"`
}

// flexString reads a string or a number: App ids come as both.
type flexString string

func (f *flexString) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err == nil {
		*f = flexString(s)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return fmt.Errorf("neither a string nor a number: %s", b)
	}
	*f = flexString(n.String())
	return nil
}

// jwt is a token that has been read and not yet believed.
type jwt struct {
	algorithm string
	claims    claims
	signed    string
	signature []byte
}

func parseJWT(token string) (jwt, error) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return jwt{}, errors.New("not a JWT")
	}
	var head struct {
		Alg string `json:"alg"`
	}
	out := jwt{signed: parts[0] + "." + parts[1]}
	for i, into := range []any{&head, &out.claims} {
		b, err := base64.RawURLEncoding.DecodeString(parts[i])
		if err != nil {
			return jwt{}, fmt.Errorf("part %d of the JWT: %w", i+1, err)
		}
		if err := json.Unmarshal(b, into); err != nil {
			return jwt{}, fmt.Errorf("part %d of the JWT: %w", i+1, err)
		}
	}
	sig, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return jwt{}, fmt.Errorf("signature of the JWT: %w", err)
	}
	out.algorithm, out.signature = head.Alg, sig
	return out, nil
}

// verify checks the signature against the key. The algorithms are the caller's choice, not the token's.
func (j jwt) verify(key *rsa.PublicKey, algorithms ...string) error {
	for _, alg := range algorithms {
		if alg != j.algorithm {
			continue
		}
		sum := sha256.Sum256([]byte(j.signed))
		switch alg {
		case "RS256":
			return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], j.signature)
		case "PS256":
			return rsa.VerifyPSS(key, crypto.SHA256, sum[:], j.signature, nil)
		}
	}
	return fmt.Errorf("algorithm %q is not accepted", j.algorithm)
}

func unix(seconds float64) time.Time { return time.Unix(int64(seconds), 0) }
