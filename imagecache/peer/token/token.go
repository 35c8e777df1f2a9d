// SPDX-License-Identifier: MIT

// Package token is the word by which one host lets another take chunks from it: the
// controller signs it, hosts check it without asking anybody. It is bound to the key with
// which its bearer opens the connection, so that whoever gets hold of one can do nothing
// with it. It opens nothing but chunks, and only for some minutes.
package token

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Leeway is how far the clock of a host may be from the controller's.
const Leeway = 2 * time.Minute

const (
	prefix  = "mfp1."
	domain  = "minifleet peer token 1\n" // what is signed is nothing else's signature
	maxText = 1000

	// maxLife is far more than a controller gives: what lasts longer is no token.
	maxLife = 24 * time.Hour
)

// ErrInvalid marks a text that is no token of this controller's, or not for this place or
// moment. Errors never quote it.
var ErrInvalid = errors.New("not a valid token")

// Claims are what a token says.
type Claims struct {
	Site  string `json:"s"`
	Group string `json:"g"` // of hosts on one local network
	Host  string `json:"h"` // its bearer
	Pin   string `json:"k"` // of the key with which the bearer opens connections
	// NotBefore and Expires are by the controller's clock, in Unix seconds.
	NotBefore int64 `json:"n"`
	Expires   int64 `json:"e"`
}

var (
	word = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,64}$`)
	pin  = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

func (c Claims) validate() error {
	switch {
	case !word.MatchString(c.Site) || !word.MatchString(c.Group) || !word.MatchString(c.Host):
		return fmt.Errorf("%w: site, group and host are words of 1 to 64 characters", ErrInvalid)
	case !pin.MatchString(c.Pin):
		return fmt.Errorf("%w: its pin is none", ErrInvalid)
	case c.NotBefore < 0 || c.Expires <= c.NotBefore || c.Expires-c.NotBefore > int64(maxLife/time.Second):
		return fmt.Errorf("%w: it has to last for up to %s", ErrInvalid, maxLife)
	}
	return nil
}

// Sign returns the token that says c.
func Sign(key ed25519.PrivateKey, c Claims) (secret.Text, error) {
	if err := c.validate(); err != nil {
		return secret.Text{}, err
	}
	payload, err := json.Marshal(c)
	if err != nil {
		return secret.Text{}, err
	}
	sig := ed25519.Sign(key, append([]byte(domain), payload...))
	enc := base64.RawURLEncoding
	return secret.New(prefix + enc.EncodeToString(payload) + "." + enc.EncodeToString(sig)), nil
}

// Verify returns what a token says, if it was signed with the other half of one of the keys and
// counts at the moment, give or take Leeway. What it is good for is the caller's to see.
func Verify(t secret.Text, keys []ed25519.PublicKey, now time.Time) (Claims, error) {
	payload, sig, err := split(t.Reveal())
	if err != nil {
		return Claims{}, err
	}
	signed := append([]byte(domain), payload...)
	good := false
	for _, k := range keys {
		good = good || len(k) == ed25519.PublicKeySize && ed25519.Verify(k, signed, sig)
	}
	if !good {
		return Claims{}, fmt.Errorf("%w: this host's controller has not signed it", ErrInvalid)
	}
	c, err := parse(payload)
	if err != nil {
		return Claims{}, err
	}
	leeway := int64(Leeway / time.Second)
	switch at := now.Unix(); {
	case at < c.NotBefore-leeway:
		return Claims{}, fmt.Errorf("%w: it counts from %s on: set the clocks of hosts and controller", ErrInvalid, time.Unix(c.NotBefore, 0).UTC().Format(time.RFC3339))
	case at >= c.Expires+leeway:
		return Claims{}, fmt.Errorf("%w: it expired at %s", ErrInvalid, time.Unix(c.Expires, 0).UTC().Format(time.RFC3339))
	}
	return c, nil
}

// split takes a token apart and believes nothing of it.
func split(text string) (payload, sig []byte, err error) {
	rest, ok := strings.CutPrefix(text, prefix)
	body, tail, two := strings.Cut(rest, ".")
	if !ok || !two || len(text) > maxText || strings.ContainsAny(text, "\r\n") { // which base64 skips
		return nil, nil, fmt.Errorf("%w: its form is another", ErrInvalid)
	}
	enc := base64.RawURLEncoding.Strict()
	payload, err1 := enc.DecodeString(body)
	sig, err2 := enc.DecodeString(tail)
	if err1 != nil || err2 != nil || len(sig) != ed25519.SignatureSize {
		return nil, nil, fmt.Errorf("%w: its form is another", ErrInvalid)
	}
	return payload, sig, nil
}

// parse reads what was signed. A field that it does not know may restrict the token.
func parse(payload []byte) (Claims, error) {
	dec := json.NewDecoder(bytes.NewReader(payload))
	dec.DisallowUnknownFields()
	var c Claims
	if err := dec.Decode(&c); err != nil {
		return Claims{}, fmt.Errorf("%w: this agent does not know its form: upgrade it", ErrInvalid)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Claims{}, fmt.Errorf("%w: something follows it", ErrInvalid)
	}
	return c, c.validate()
}
