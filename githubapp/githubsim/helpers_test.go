// SPDX-License-Identifier: MIT

package githubsim_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/google/go-github/v62/github"

	"github.com/minifleet/minifleet/githubapp/githubsim"
	"github.com/minifleet/minifleet/internal/leakcheck"
	"github.com/minifleet/minifleet/secret"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// appKey is one App key for all tests, because making one takes long.
var appKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

func keyPEM(key *rsa.PrivateKey) secret.Text {
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
}

// newSim makes a Sim with the App installed on the organization octo.
func newSim(t *testing.T, opt githubsim.Options) (*githubsim.Sim, int64) {
	t.Helper()
	opt.PrivateKey = keyPEM(appKey())
	opt.KeyPool = 1
	sim, err := githubsim.New(opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	id, err := sim.AddInstallation(githubsim.Installation{Account: "octo", Repositories: []string{"demo", "other"}})
	if err != nil {
		t.Fatal(err)
	}
	return sim, id
}

func startSim(t *testing.T, opt githubsim.Options) (*githubsim.Sim, int64) {
	t.Helper()
	sim, id := newSim(t, opt)
	if err := sim.Start(); err != nil {
		t.Fatal(err)
	}
	return sim, id
}

// transport is a client's connections, closed with the test.
func transport(t *testing.T) *http.Transport {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return tr
}

// asApp returns a go-github client that is the App.
func asApp(t *testing.T, sim *githubsim.Sim) *github.Client {
	t.Helper()
	tr, err := ghinstallation.NewAppsTransport(transport(t), sim.AppID(), []byte(sim.PrivateKeyPEM().Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	return client(t, sim, tr)
}

// asInstallation returns a go-github client that is an installation of the App.
func asInstallation(t *testing.T, sim *githubsim.Sim, id int64) *github.Client {
	t.Helper()
	tr, err := ghinstallation.New(transport(t), sim.AppID(), id, []byte(sim.PrivateKeyPEM().Reveal()))
	if err != nil {
		t.Fatal(err)
	}
	tr.BaseURL = sim.URL()
	return client(t, sim, tr)
}

func client(t *testing.T, sim *githubsim.Sim, tr http.RoundTripper) *github.Client {
	t.Helper()
	c := github.NewClient(&http.Client{Transport: tr})
	u, err := url.Parse(sim.URL() + "/")
	if err != nil {
		t.Fatal(err)
	}
	c.BaseURL = u
	return c
}

// jwt signs a JWT of the App; a nil claim is left out.
func jwt(t *testing.T, key *rsa.PrivateKey, claims map[string]any) string {
	t.Helper()
	now := time.Now()
	all := map[string]any{"iss": "4242", "iat": now.Add(-30 * time.Second).Unix(), "exp": now.Add(5 * time.Minute).Unix(), "jti": rand.Text()}
	for name, v := range claims {
		if all[name] = v; v == nil {
			delete(all, name)
		}
	}
	b, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256","typ":"JWT"}`)) + "." + base64.RawURLEncoding.EncodeToString(b)
	sum := sha256.Sum256([]byte(signed))
	sig, err := rsa.SignPKCS1v15(nil, key, crypto.SHA256, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(sig)
}

// call asks the Sim's handler directly, which works under synctest too.
func call(t *testing.T, sim *githubsim.Sim, method, path, token, body string) *httptest.ResponseRecorder {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), method, path, strings.NewReader(body))
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	w := httptest.NewRecorder()
	sim.Handler().ServeHTTP(w, req)
	return w
}

// want demands a status and returns the answer if it is an object.
func want(t *testing.T, w *httptest.ResponseRecorder, status int) map[string]any {
	t.Helper()
	if w.Code != status {
		t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	var out map[string]any
	if json.Unmarshal(w.Body.Bytes(), &out) != nil {
		return nil
	}
	return out
}

func tokenFor(t *testing.T, sim *githubsim.Sim, install int64, body string) string {
	t.Helper()
	path := fmt.Sprintf("/app/installations/%d/access_tokens", install)
	return want(t, call(t, sim, "POST", path, jwt(t, appKey(), nil), body), http.StatusCreated)["token"].(string)
}

const jitPath = "/repos/octo/demo/actions/runners/generate-jitconfig"

func jitBody(name string) string {
	return fmt.Sprintf(`{"name":%q,"runner_group_id":1,"labels":["vm"]}`, name)
}

// filesOf reads a JIT config: its files by their names.
func filesOf(t *testing.T, encoded string) map[string][]byte {
	t.Helper()
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	var files map[string][]byte
	if err := json.Unmarshal(raw, &files); err != nil {
		t.Fatal(err)
	}
	return files
}

// received is one delivery as a receiver saw it.
type received struct {
	header http.Header
	body   []byte
}

// receiver takes deliveries and gives the answer that it is told to.
type receiver struct {
	mu     sync.Mutex // guards everything below
	got    []received
	answer int
}

func newReceiver(t *testing.T) (*receiver, string) {
	t.Helper()
	r := &receiver{answer: http.StatusAccepted}
	srv := httptest.NewServer(r)
	t.Cleanup(srv.Close)
	return r, srv.URL
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, received{req.Header, body})
	w.WriteHeader(r.answer)
}

func (r *receiver) all() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]received(nil), r.got...)
}

func (r *receiver) answerWith(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = status
}

func queue(t *testing.T, sim *githubsim.Sim, jobs ...githubsim.JobSpec) githubsim.Run {
	t.Helper()
	for i := range jobs {
		if jobs[i].Name == "" {
			jobs[i].Name = fmt.Sprintf("job-%d", i)
		}
		jobs[i].Labels = append(jobs[i].Labels, "vm")
	}
	run, err := sim.QueueRun(githubsim.Workflow{Repo: "octo/demo", Jobs: jobs})
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func delivered(t *testing.T, sim *githubsim.Sim) []githubsim.Delivery {
	t.Helper()
	if err := sim.WaitDelivered(t.Context()); err != nil {
		t.Fatal(err)
	}
	return sim.Deliveries()
}
