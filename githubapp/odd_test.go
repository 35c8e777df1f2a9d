// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v4"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

const appID = 31337

// appKey is made once: RSA keys are slow to make.
var appKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func keyPEM() secret.Text {
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(appKey())})))
}

// odd is a GitHub that answers as a test wants it to. Left alone it knows one
// installation, of organization acme with repository acme/rockets.
type odd struct {
	t      *testing.T
	server *httptest.Server
	now    func() time.Time // by which the App's times are judged
	began  time.Time        // by it; nothing was signed before

	mu           sync.Mutex
	installation int64
	tokens       map[string]int64 // valid ones, with their installation
	jtis         map[string]bool
	handlers     map[string]http.HandlerFunc // by "METHOD path"
	calls        []string
	bodies       []string
}

func newOdd(t *testing.T) *odd {
	o := &odd{t: t, now: time.Now, installation: 7, tokens: map[string]int64{}, jtis: map[string]bool{}, handlers: map[string]http.HandlerFunc{}}
	o.server = httptest.NewServer(o)
	t.Cleanup(o.server.Close)
	return o
}

func (o *odd) on(call string, h http.HandlerFunc) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.handlers[call] = h
}

func (o *odd) reinstall(id int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.installation = id
	clear(o.tokens)
}

// count returns how many calls of a method to a path that ends so there were.
func (o *odd) count(method, suffix string) (n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range o.calls {
		if strings.HasPrefix(c, method+" ") && strings.HasSuffix(c, suffix) {
			n++
		}
	}
	return n
}

func (o *odd) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	call := r.Method + " " + r.URL.Path
	o.mu.Lock()
	o.calls = append(o.calls, call)
	o.bodies = append(o.bodies, string(body))
	h := o.handlers[call]
	id := o.installation
	_, tokenOK := o.tokens[strings.TrimPrefix(r.Header.Get("Authorization"), "token ")]
	o.mu.Unlock()
	if r.Header.Get("User-Agent") == "" || strings.HasPrefix(r.Header.Get("User-Agent"), "Go-http") {
		o.t.Errorf("%s came without a user agent", call)
	}
	asApp := strings.HasPrefix(r.URL.Path, "/app/") || strings.HasSuffix(r.URL.Path, "/installation")
	if asApp {
		o.checkJWT(r)
	}
	switch {
	case h != nil:
		h(w, r)
	case asApp && r.URL.Path == fmt.Sprintf("/app/installations/%d/access_tokens", id):
		token := "ghs_" + rand.Text()
		o.mu.Lock()
		o.tokens[token] = id
		o.mu.Unlock()
		reply(w, http.StatusCreated, fmt.Sprintf(`{"token":%q,"expires_at":%q}`, token, time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	case r.URL.Path == "/orgs/acme/installation" || r.URL.Path == "/repos/acme/rockets/installation":
		reply(w, http.StatusOK, fmt.Sprintf(`{"id":%d,"account":{"login":"acme"}}`, id))
	case asApp:
		reply(w, http.StatusNotFound, `{"message":"Not Found"}`)
	case !tokenOK:
		reply(w, http.StatusUnauthorized, `{"message":"Bad credentials"}`)
	default:
		reply(w, http.StatusNotFound, `{"message":"Not Found"}`)
	}
}

func (o *odd) checkJWT(r *http.Request) {
	raw := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	var c jwt.RegisteredClaims
	_, err := jwt.NewParser(jwt.WithValidMethods([]string{"RS256"}), jwt.WithoutClaimsValidation()).ParseWithClaims(raw, &c, func(*jwt.Token) (any, error) { return &appKey().PublicKey, nil })
	if err != nil {
		o.t.Errorf("%s: %v", r.URL.Path, err)
		return
	}
	now := o.now()
	if c.Issuer != fmt.Sprint(appID) || c.IssuedAt.After(now.Add(-50*time.Second)) || c.IssuedAt.Before(o.began.Add(-62*time.Second)) ||
		c.ExpiresAt.After(now.Add(10*time.Minute)) || !c.ExpiresAt.After(now.Add(time.Minute)) {
		o.t.Errorf("claims %+v at %s", c, now)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if c.ID == "" || o.jtis[c.ID] {
		o.t.Errorf("jti %q is empty or not new", c.ID)
	}
	o.jtis[c.ID] = true
}

func reply(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	io.WriteString(w, body)
}

func replying(status int, body string, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		reply(w, status, body)
	}
}

// app returns an App that talks to the server.
func (o *odd) app(change ...func(*githubapp.Config)) *githubapp.App {
	o.t.Helper()
	c := githubapp.Config{AppID: appID, PrivateKey: keyPEM(), BaseURL: o.server.URL, Now: time.Now}
	for _, f := range change {
		f(&c)
	}
	o.now, o.began = c.Now, c.Now() // before the first call
	a, err := githubapp.New(c)
	if err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(a.Close)
	return a
}

// config is a just-in-time config as GitHub encodes it.
func config(name string, ephemeral any) string {
	settings, err := json.Marshal(map[string]any{"AgentId": "359", "AgentName": name, "Ephemeral": ephemeral, "DisableUpdate": "True", "PoolName": nil})
	if err != nil {
		panic(err)
	}
	files, err := json.Marshal(map[string][]byte{".runner": append([]byte("\xef\xbb\xbf"), settings...), ".credentials": []byte("{}"), ".credentials_rsaparams": []byte("{}")})
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(files)
}

func registered(id int64, name, config string) string {
	b, err := json.Marshal(map[string]any{
		"runner":             map[string]any{"id": id, "name": name, "os": "unknown", "status": "offline", "busy": false, "labels": []any{}},
		"encoded_jit_config": config,
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

var (
	org    = fleet.Scope{Owner: "acme"}
	rocket = fleet.Scope{Owner: "acme", Repo: "rockets"}
)

const (
	orgMint  = "POST /orgs/acme/actions/runners/generate-jitconfig"
	repoMint = "POST /repos/acme/rockets/actions/runners/generate-jitconfig"
)

func ask(scope fleet.Scope) githubapp.RegisterRequest {
	return githubapp.RegisterRequest{Scope: scope, Name: "s1-mac-abc", Labels: []string{"self-hosted", "macOS"}}
}

// logTo returns a change that sends the log to b.
func logTo(b *bytes.Buffer) func(*githubapp.Config) {
	return func(c *githubapp.Config) {
		c.Log = slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
}
