// SPDX-License-Identifier: MIT

package webhook_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/webhook"
)

// FuzzPost sends any request to the public listener, signed with the key or with
// whatever the header says: nothing that is not authentic is stored, and every answer
// is one that GitHub's delivery page can show.
func FuzzPost(f *testing.F) {
	f.Fuzz(func(t *testing.T, sign bool, signature, delivery, event, target, appID, contentType string, body []byte) {
		store := newMemory()
		h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: 31337, Store: store})
		if err != nil {
			t.Fatal(err)
		}
		router := chi.NewRouter()
		h.Routes(router)
		mac := hmac.New(sha256.New, []byte(key))
		mac.Write(body)
		genuine := hex.EncodeToString(mac.Sum(nil))
		if sign {
			signature = "sha256=" + genuine
		}
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/webhook", bytes.NewReader(body))
		for name, value := range map[string]string{
			"X-Hub-Signature-256": signature, "X-GitHub-Delivery": delivery, "X-GitHub-Event": event, "Content-Type": contentType,
			"X-GitHub-Hook-Installation-Target-Type": target, "X-GitHub-Hook-Installation-Target-ID": appID,
		} {
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		router.ServeHTTP(w, r)

		var said struct{ Status, Reason, Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &said); err != nil {
			t.Fatalf("answer %d %s: %v", w.Code, w.Body, err)
		}
		text := said.Reason + said.Error
		if len(text) > 2048 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) || strings.Contains(text, genuine) || strings.Contains(text, key) {
			t.Errorf("answer %q", text)
		}
		authentic := strings.EqualFold(signature, "sha256="+genuine) && strings.HasPrefix(signature, "sha256=")
		switch {
		case (w.Code == http.StatusUnauthorized) == authentic:
			t.Errorf("answer %d to a request of which authentic is %t", w.Code, authentic)
		case (w.Code == http.StatusAccepted) != (store.ingests == 1):
			t.Errorf("answer %d, and %d deliveries were stored", w.Code, store.ingests)
		case w.Code == http.StatusAccepted:
			d := store.deliveries[delivery]
			if !bytes.Equal(d.Payload, body) || d.Event != event || string(d.Status) != said.Status {
				t.Errorf("stored %+v", d)
			}
			if (d.Status == fleet.DeliveryProcessed) != (said.Reason == "") {
				t.Errorf("%s because of %q", d.Status, said.Reason)
			}
		case w.Code != http.StatusUnauthorized && w.Code != http.StatusBadRequest:
			t.Errorf("answer %d %s", w.Code, w.Body)
		}
	})
}
