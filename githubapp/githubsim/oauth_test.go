// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"crypto/rsa"
	"encoding/json"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// runnerToken exchanges what a JIT config holds for a token, as a runner does when it starts.
func runnerToken(t *testing.T, sim *githubsim.Sim, encoded string) string {
	t.Helper()
	files := filesOf(t, encoded)
	var oauth struct {
		Data struct{ ClientID, AuthorizationURL string }
	}
	var params map[string][]byte
	if err := json.Unmarshal(files[".credentials"], &oauth); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(files[".credentials_rsaparams"], &params); err != nil {
		t.Fatal(err)
	}
	n := func(name string) *big.Int { return new(big.Int).SetBytes(params[name]) }
	key := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: n("modulus"), E: int(n("exponent").Int64())}, D: n("d"), Primes: []*big.Int{n("p"), n("q")}}
	key.Precompute()
	id, audience := oauth.Data.ClientID, oauth.Data.AuthorizationURL
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"},
		"client_assertion": {jwt(t, key, map[string]any{"iss": id, "sub": id, "aud": audience, "nbf": time.Now().Unix()})},
	}
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, audience, strings.NewReader(form.Encode()))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	w := httptest.NewRecorder()
	sim.Handler().ServeHTTP(w, req)
	return want(t, w, http.StatusOK)["access_token"].(string)
}

// Two programs with one config sign in at the same time: neither signs the other out.
func TestTokensOfOneRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sim, octo := newSim(t, githubsim.Options{Kind: true})
		jit := want(t, call(t, sim, "POST", jitPath, tokenFor(t, sim, octo, ""), jitBody("vm-1")), http.StatusCreated)
		config := jit["encoded_jit_config"].(string)
		sessions := func(token string, status int) {
			t.Helper()
			want(t, call(t, sim, "POST", "/_services/pipelines/_apis/distributedtask/pools/1/sessions", token, `{"ownerName":"vm-1"}`), status)
		}
		first := runnerToken(t, sim, config)
		time.Sleep(30 * time.Minute)
		second := runnerToken(t, sim, config)
		sessions(first, http.StatusOK)
		sessions(second, http.StatusConflict) // it is let in, and finds the session of the first
		time.Sleep(30 * time.Minute)
		sessions(first, http.StatusUnauthorized) // 50 minutes are over
		sessions(second, http.StatusOK)
	})
}
