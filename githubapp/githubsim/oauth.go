// SPDX-License-Identifier: MIT

package githubsim

import (
	"maps"
	"net/http"
	"time"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"

// exchangeToken gives a runner a token for a client assertion signed with the
// key of its JIT config.
func (s *Sim) exchangeToken(w http.ResponseWriter, r *http.Request) {
	deny := func(why string) {
		reply(w, http.StatusBadRequest, object{"error": "invalid_client", "error_description": why})
	}
	r.Body = http.MaxBytesReader(w, r.Body, bodyLimit)
	if r.FormValue("grant_type") != "client_credentials" || r.FormValue("client_assertion_type") != assertionType {
		deny("the grant is not a client assertion")
		return
	}
	t, err := parseJWT(r.FormValue("client_assertion"))
	if err != nil {
		deny(err.Error())
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	ru := s.byClientID(string(t.claims.Issuer))
	switch {
	case ru == nil || ru.removed():
		deny("The client is unknown: the registration has been deleted.")
		return
	case t.claims.Subject != string(t.claims.Issuer):
		deny("sub differs from iss")
		return
	case t.claims.Audience != s.runnerBase(r)+tokenPath:
		deny("aud is not this token service")
		return
	case !s.clock.now().Before(unix(t.claims.Expires)) || unix(t.claims.NotBefore).After(s.clock.now().Add(5*time.Minute)):
		deny("the assertion is outside of its time; is the runner's clock right?")
		return
	}
	if err := t.verify(&ru.key.PublicKey, "RS256", "PS256"); err != nil {
		deny(err.Error())
		return
	}
	maps.DeleteFunc(s.runnerTokens, func(_ string, old runnerToken) bool { return now.After(old.expires) })
	token := newToken("run_")
	s.runnerTokens[token] = runnerToken{of: ru, expires: now.Add(s.timing.RunnerToken)}
	s.log.Debug("runner token issued", "runner", ru.name, "algorithm", t.algorithm)
	reply(w, http.StatusOK, object{
		"access_token": token, "expires_in": int(s.timing.RunnerToken / time.Second), "token_type": "Bearer", "scope": "AppToken.All",
	})
}
