// SPDX-License-Identifier: MIT

package objects_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/objects/objectstest"
)

// key writes a service account's key whose tokens come from there.
func key(t *testing.T, tokens string) string {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "mini@example.iam.gserviceaccount.com", "token_uri": tokens, "private_key_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTokenRefused: a key that was revoked is final, and said with its account.
func TestTokenRefused(t *testing.T) {
	t.Parallel()
	asked := 0
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked++
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		w.Write([]byte(`{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`))
	}))
	defer tokens.Close()
	s := open(t, objects.Options{Scheme: "gs", Location: "images", Endpoint: "https://127.0.0.1:1", KeyFile: key(t, tokens.URL)})
	_, err := s.Stat(t.Context(), "a")
	if !errors.Is(err, objects.ErrForbidden) || !strings.Contains(err.Error(), "mini@example.iam.gserviceaccount.com") || !strings.Contains(err.Error(), "key") || asked != 1 {
		t.Errorf("asked %d times: %v", asked, err)
	}
}

// TestNoSecretWithoutTLS: an address without TLS gets no token, whatever key is given.
func TestNoSecretWithoutTLS(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&objectstest.Server{Bucket: "images", Fault: func(w http.ResponseWriter, r *http.Request, answer http.Handler) {
		if r.Header.Get("Authorization") != "" {
			t.Error("it sent credentials")
		}
		answer.ServeHTTP(w, r)
	}})
	defer server.Close()
	s := open(t, objects.Options{Scheme: "gs", Location: "images", Endpoint: server.URL, KeyFile: key(t, "http://127.0.0.1:1")})
	put(t, s, "a", "1")
}

func put(t *testing.T, s objects.Store, name, content string) objects.Attributes {
	t.Helper()
	a, err := s.Put(t.Context(), name, []byte(content), objects.Condition{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestUntrusted: a server with a certificate that nobody vouches for is not asked again.
func TestUntrusted(t *testing.T) {
	t.Parallel()
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Write([]byte(`{"access_token":"the-secret","token_type":"Bearer","expires_in":3600}`))
	}))
	defer tokens.Close()
	server := httptest.NewUnstartedServer(&objectstest.Server{Bucket: "images"})
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	s := open(t, objects.Options{Scheme: "gs", Location: "images", Endpoint: server.URL, KeyFile: key(t, tokens.URL)})
	began := time.Now()
	_, err := s.Stat(t.Context(), "a")
	if err == nil || !strings.Contains(err.Error(), "certificate") || strings.Contains(err.Error(), "the-secret") || time.Since(began) > time.Minute {
		t.Error(err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "key.json")
	if err := os.WriteFile(broken, []byte(`{"private_key":"the-secret`), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", filepath.Join(dir, "none"))
	t.Setenv("STORAGE_EMULATOR_HOST", "")
	for name, test := range map[string]struct {
		o    objects.Options
		want string
	}{
		"scheme":         {objects.Options{Scheme: "oci", Location: "a"}, "gs or file"},
		"times":          {objects.Options{Scheme: "file", Location: dir, Stall: -1}, "negative"},
		"no folder":      {objects.Options{Scheme: "file", Location: dir + "/none"}, "make it"},
		"a file":         {objects.Options{Scheme: "file", Location: broken}, "not a folder"},
		"relative":       {objects.Options{Scheme: "file", Location: "a"}, "absolute"},
		"no bucket":      {objects.Options{Scheme: "gs"}, "missing"},
		"prefix":         {objects.Options{Scheme: "gs", Location: "bucket/../a"}, "name"},
		"endpoint":       {objects.Options{Scheme: "gs", Location: "bucket", Endpoint: "http://user:the-secret@host"}, "endpoint"},
		"no credentials": {objects.Options{Scheme: "gs", Location: "bucket"}, "gcloud auth application-default login"},
		"no key":         {objects.Options{Scheme: "gs", Location: "bucket", KeyFile: dir + "/none"}, "no such file"},
		"broken key":     {objects.Options{Scheme: "gs", Location: "bucket", KeyFile: broken}, "no service account's key"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := objects.Open(t.Context(), test.o)
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "the-secret") {
				t.Errorf("%v: want %q", err, test.want)
			}
		})
	}
}

func TestEmulatorHost(t *testing.T) {
	server := httptest.NewServer(&objectstest.Server{Bucket: "images"})
	defer server.Close()
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(server.URL, "http://"))
	s := open(t, objects.Options{Scheme: "gs", Location: "images"})
	put(t, s, "a", "1")
	if s.String() != "gs://images" {
		t.Error(s)
	}
}
