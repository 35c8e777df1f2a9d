// SPDX-License-Identifier: MIT

package githubsim

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// accessToken is an installation token.
type accessToken struct {
	install     *installation
	expires     time.Time
	permissions map[string]string
	repos       map[int64]bool // nil: all of the installation
}

func (t *accessToken) covers(r *repository) bool {
	return t.install.covers(r) && (t.repos == nil || t.repos[r.id])
}

// usedJWT remembers when a JWT was last used to ask for a token.
type usedJWT struct {
	at     time.Time
	denied bool
}

// principal is who sent a REST call: the App, or one of its installations.
type principal struct {
	app   bool
	token *accessToken
}

// bucket names the rate limit that a principal draws on.
func (p principal) bucket() string {
	switch {
	case p.app:
		return "app"
	case p.token != nil:
		return fmt.Sprintf("installation ID %d", p.token.install.id)
	default:
		return "anonymous"
	}
}

func (p principal) may(permission, level string) bool {
	have := p.token.permissions[permission]
	return have == "write" || have == level && level == "read"
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") && !strings.EqualFold(scheme, "token") {
		return ""
	}
	return strings.TrimSpace(token)
}

// authenticate finds out who calls. A nil answer means that the caller is known. The caller holds mu.
func (s *Sim) authenticate(r *http.Request) (principal, *answer) {
	token := bearer(r)
	switch {
	case token == "":
		return principal{}, fail(http.StatusUnauthorized, "Requires authentication")
	case strings.Count(token, ".") == 2:
		if objection := s.verifyAppJWT(token); objection != "" {
			return principal{}, fail(http.StatusUnauthorized, objection)
		}
		return principal{app: true}, nil
	}
	t := s.tokens[token]
	if t == nil || !time.Now().Before(t.expires) {
		return principal{}, fail(http.StatusUnauthorized, "Bad credentials")
	}
	if !t.install.suspendedAt.IsZero() {
		return principal{}, fail(http.StatusForbidden, "This installation has been suspended")
	}
	return principal{token: t}, nil
}

// verifyAppJWT checks a JWT of the App, and says in GitHub's words what is wrong with it.
func (s *Sim) verifyAppJWT(token string) (objection string) {
	t, err := parseJWT(token)
	if err != nil || t.verify(s.appKey, "RS256") != nil {
		return "A JSON web token could not be decoded"
	}
	now := s.clock.now()
	issued, expires := unix(t.claims.IssuedAt), unix(t.claims.Expires)
	clientID := fmt.Sprintf("Iv1.%016x", s.opt.AppID)
	switch {
	case string(t.claims.Issuer) != fmt.Sprint(s.opt.AppID) && string(t.claims.Issuer) != clientID:
		return "'Issuer' claim ('iss') must be an Integer or a client ID of this app"
	case t.claims.IssuedAt == 0:
		return "Missing 'issued at' claim ('iat') in assertion"
	case issued.After(now):
		return "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
	case t.claims.Expires == 0 || !expires.After(now):
		return "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the assertion expires"
	case expires.After(now.Add(10 * time.Minute)):
		return "'Expiration time' claim ('exp') is too far in the future"
	}
	return ""
}

// repeatedJWT reports whether a JWT is byte for byte one that was used within
// the last second. GitHub then answers 404, once, on the way to a token.
func (s *Sim) repeatedJWT(token string) bool {
	if s.opt.Kind {
		return false
	}
	now, sum := time.Now(), sha256.Sum256([]byte(token))
	for old, used := range s.usedJWTs {
		if now.Sub(used.at) > 10*time.Minute {
			delete(s.usedJWTs, old)
		}
	}
	used := s.usedJWTs[sum]
	if used == nil {
		s.usedJWTs[sum] = &usedJWT{at: now}
		return false
	}
	repeated := !used.denied && now.Sub(used.at) < time.Second
	used.at, used.denied = now, used.denied || repeated
	return repeated
}
