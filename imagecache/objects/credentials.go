// SPDX-License-Identifier: MIT

package objects

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"
)

// scope allows to read and write objects and their metadata, but no bucket's settings.
const scope = "https://www.googleapis.com/auth/devstorage.read_write"

const maxKeyBytes = 64 << 10

// sign returns a transport that adds the credentials, and notes whose they are.
func (b *bucket) sign(ctx context.Context, base http.RoundTripper, keyFile string) (http.RoundTripper, error) {
	// Asking for a token is not within the context of the request that needs it.
	b.tokens = &http.Client{Transport: newTransport(nil), Timeout: b.stall}
	ctx = context.WithValue(context.WithoutCancel(ctx), oauth2.HTTPClient, b.tokens)
	creds, err := credentials(ctx, keyFile)
	if err != nil {
		return nil, err
	}
	b.account = accountOf(creds.JSON)
	return &oauth2.Transport{Base: base, Source: creds.TokenSource}, nil
}

func credentials(ctx context.Context, keyFile string) (*google.Credentials, error) {
	if keyFile == "" {
		creds, err := google.FindDefaultCredentials(ctx, scope)
		if err != nil {
			return nil, fmt.Errorf("there are no credentials: give the path of a service account's key, or run gcloud auth application-default login: %w", err)
		}
		return creds, nil
	}
	f, err := os.Open(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read the service account's key: %w", err)
	}
	defer f.Close()
	key, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the service account's key: %w", err)
	}
	if len(key) > maxKeyBytes {
		return nil, fmt.Errorf("%s is too large for a service account's key", keyFile)
	}
	creds, err := google.CredentialsFromJSONWithType(ctx, key, google.ServiceAccount, scope)
	if err != nil {
		// The error of a parser may quote the key.
		return nil, fmt.Errorf("%s is no service account's key: make one with gcloud iam service-accounts keys create", keyFile)
	}
	return creds, nil
}

// accountOf reads whom credentials are of, if they say so.
func accountOf(creds []byte) string {
	var who struct {
		Email string `json:"client_email"`
	}
	if json.Unmarshal(creds, &who) != nil || len(who.Email) > 320 {
		return ""
	}
	return who.Email
}

// credentialsRefused reports whether it was the token that could not be had.
func credentialsRefused(err error) bool {
	e, ok := errors.AsType[*oauth2.RetrieveError](err)
	return ok && e.Response != nil && e.Response.StatusCode < 500
}
