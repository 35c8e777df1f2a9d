// SPDX-License-Identifier: MIT

package standin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"
)

var (
	errGone     = errors.New("the registration does not exist")
	errConflict = errors.New("another session exists")
	errDenied   = errors.New("the token is not accepted")
	errProtocol = errors.New("the service answers what this runner does not understand")
)

// config is a JIT config as far as the stand-in needs it.
type config struct {
	runner struct{ AgentID, AgentName, PoolID, ServerURL string }
	oauth  struct {
		Data struct{ ClientID, AuthorizationURL string }
	}
	key rsa.PrivateKey
}

// parseJIT reads a JIT config: base64 of a JSON map from file name to base64 of
// the file. No part of it is in an error.
func parseJIT(text string) (c config, err error) {
	raw, err := base64.StdEncoding.DecodeString(text)
	var files map[string][]byte
	var k struct{ Modulus, Exponent, D, P, Q []byte }
	if err != nil || json.Unmarshal(raw, &files) != nil || json.Unmarshal(files[".runner"], &c.runner) != nil ||
		json.Unmarshal(files[".credentials"], &c.oauth) != nil || json.Unmarshal(files[".credentials_rsaparams"], &k) != nil {
		return c, errors.New("ACTIONS_RUNNER_INPUT_JITCONFIG is not a JIT config: pass on what the service gave")
	}
	num := func(b []byte) *big.Int { return new(big.Int).SetBytes(b) }
	c.key = rsa.PrivateKey{PublicKey: rsa.PublicKey{N: num(k.Modulus), E: int(num(k.Exponent).Int64())}, D: num(k.D), Primes: []*big.Int{num(k.P), num(k.Q)}}
	if err := c.key.Validate(); err != nil {
		return c, errors.New("the key in ACTIONS_RUNNER_INPUT_JITCONFIG is not a valid RSA key")
	}
	c.key.Precompute()
	return c, nil
}

// service is the Actions service as one runner sees it.
type service struct {
	cfg                config
	http               *http.Client
	tok, session, pool string
	aesKey             []byte
}

func newService(c config) *service {
	pool := strings.TrimSuffix(c.runner.ServerURL, "/") + "/_apis/distributedtask/pools/" + url.PathEscape(c.runner.PoolID)
	return &service{cfg: c, pool: pool, http: &http.Client{Timeout: 100 * time.Second, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment}}}
}

// send makes one request and decodes a JSON answer into out, if there is one.
func (s *service) send(ctx context.Context, method, target, token, kind string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%w: %w", errProtocol, err)
	}
	req.Header = http.Header{"Content-Type": {kind}, "Authorization": {"Bearer " + token}}
	resp, err := s.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	switch code := resp.StatusCode; {
	case err != nil:
		return err
	case code == http.StatusConflict:
		return errConflict
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return errDenied
	case code == http.StatusNotFound, bytes.Contains(text, []byte("invalid_client")):
		return errGone
	case code/100 != 2:
		return fmt.Errorf("%s answers %d", req.URL.Path, code)
	case out != nil && len(text) > 0 && json.Unmarshal(text, out) != nil:
		return errProtocol
	}
	return nil
}

// authorize gets a token, for an assertion signed with the runner's key.
func (s *service) authorize(ctx context.Context) error {
	id, audience, now := s.cfg.oauth.Data.ClientID, s.cfg.oauth.Data.AuthorizationURL, time.Now().Unix()
	claims, err := json.Marshal(object{"iss": id, "sub": id, "aud": audience, "jti": rand.Text(), "iat": now - 30, "nbf": now - 30, "exp": now + 300})
	if err != nil {
		return err
	}
	b64 := base64.RawURLEncoding.EncodeToString
	signed := b64([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + b64(claims)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(rand.Reader, &s.cfg.key, crypto.SHA256, sum[:])
	if err != nil {
		return err
	}
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion": {signed + "." + b64(sig)},
		"client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
	}
	var out struct {
		Token string `json:"access_token"`
	}
	err = s.send(ctx, http.MethodPost, audience, "", "application/x-www-form-urlencoded", []byte(form.Encode()), &out)
	s.tok = out.Token
	return err
}

type object = map[string]any

// call makes a request of the runner, with a new token where the one it has is
// not accepted. One that is not even then belongs to a runner that is gone.
func (s *service) call(ctx context.Context, method, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	err = errDenied
	if s.tok != "" {
		err = s.send(ctx, method, s.pool+path, s.tok, "application/json", body, out)
	}
	if !errors.Is(err, errDenied) {
		return err
	}
	if err := s.authorize(ctx); err != nil {
		return err
	}
	if err = s.send(ctx, method, s.pool+path, s.tok, "application/json", body, out); errors.Is(err, errDenied) {
		return errGone
	}
	return err
}

func (s *service) createSession(ctx context.Context) error {
	var out struct {
		SessionID     string
		EncryptionKey struct {
			Encrypted bool
			Value     []byte
		}
		BrokerMigrationMessage any
	}
	agent := object{"id": json.Number(s.cfg.runner.AgentID), "name": s.cfg.runner.AgentName, "version": Version, "osDescription": runtime.GOOS, "ephemeral": true}
	if err := s.call(ctx, http.MethodPost, "/sessions?api-version=5.1-preview", object{"ownerName": "RUNNER", "agent": agent}, &out); err != nil {
		return err
	}
	if out.SessionID == "" || out.BrokerMigrationMessage != nil {
		return fmt.Errorf("%w: it wants a runner that speaks with the broker", errProtocol)
	}
	s.session, s.aesKey = out.SessionID, out.EncryptionKey.Value
	if out.EncryptionKey.Encrypted {
		var err error
		if s.aesKey, err = rsa.DecryptOAEP(sha1.New(), nil, &s.cfg.key, s.aesKey, nil); err != nil {
			return fmt.Errorf("%w: session key: %w", errProtocol, err)
		}
	}
	return nil
}

// deleteSession ends the session. It may have ended with the job.
func (s *service) deleteSession(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_ = s.call(ctx, http.MethodDelete, "/sessions/"+url.PathEscape(s.session)+"?api-version=5.1-preview", nil, nil)
}

// renew keeps the job ours. What comes of renewals that fail the service judges.
func (s *service) renew(ctx context.Context, request int64) {
	path := fmt.Sprintf("/jobrequests/%d?api-version=5.1-preview&lockToken=00000000-0000-0000-0000-000000000000", request)
	_ = s.call(ctx, http.MethodPatch, path, object{"requestId": request}, nil)
}

// poll waits for a message, decrypts it, and deletes it, by which the runner
// takes it. No kind and no error mean that there was none.
func (s *service) poll(ctx context.Context, status string) (kind string, body []byte, err error) {
	q := url.Values{"sessionId": {s.session}, "status": {status}, "runnerVersion": {Version}, "api-version": {"5.1-preview"}}
	var m struct {
		MessageID         int64
		MessageType, Body string
		IV                []byte
	}
	if err := s.call(ctx, http.MethodGet, "/messages?"+q.Encode(), nil, &m); err != nil || m.MessageType == "" {
		return "", nil, err
	}
	body = []byte(m.Body)
	if len(m.IV) > 0 { // AES-CBC with PKCS #7 padding
		block, keyErr := aes.NewCipher(s.aesKey)
		text, err := base64.StdEncoding.DecodeString(m.Body)
		if err != nil || keyErr != nil || len(m.IV) != aes.BlockSize || len(text) == 0 || len(text)%aes.BlockSize != 0 {
			return "", nil, errProtocol
		}
		cipher.NewCBCDecrypter(block, m.IV).CryptBlocks(text, text)
		body = text[:max(len(text)-int(text[len(text)-1]), 0)]
	}
	err = s.call(ctx, http.MethodDelete, fmt.Sprintf("/messages/%d?%s", m.MessageID, q.Encode()), nil, nil)
	return m.MessageType, body, err
}
