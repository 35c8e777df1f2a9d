// SPDX-License-Identifier: MIT

package githubapp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Credentials are what GitHub tells of a new App, once.
type Credentials struct {
	Self
	PrivateKey    secret.Text // PEM
	WebhookSecret secret.Text // empty if GitHub made none
}

var (
	// ErrCode: GitHub does not know the code: it was exchanged, or is older than an hour.
	ErrCode = errors.New("GitHub does not know the code: it counts once, and for an hour")
	// ErrTryAgain: there is no answer, and asking once more does no harm.
	ErrTryAgain = errors.New("the code could not be exchanged")
	// ErrAnswerLost comes with ErrTryAgain where GitHub may have used the code up.
	ErrAnswerLost = errors.New("GitHub may have answered")
)

// ConvertManifest exchanges the code that GitHub's page for new Apps handed out for
// the App's credentials. GitHub gives them once: whoever loses the answer has to
// make a new key on the App's page
// (https://docs.github.com/en/rest/apps/apps#create-a-github-app-from-a-manifest).
func ConvertManifest(ctx context.Context, client *http.Client, base, code, userAgent string) (Credentials, error) {
	base, err := baseURL(base)
	if err != nil {
		return Credentials{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 30*time.Second, errTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/app-manifests/"+url.PathEscape(code)+"/conversions", nil)
	if err != nil {
		return Credentials{}, err
	}
	req.Header.Set("Accept", "application/vnd.github+json")
	req.Header.Set("User-Agent", userAgent)
	resp, err := client.Do(req)
	if err != nil {
		if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
			return Credentials{}, fmt.Errorf("%w: %w", ErrTryAgain, withoutURL(err))
		}
		return Credentials{}, fmt.Errorf("%w: %w: %w", ErrTryAgain, ErrAnswerLost, withoutURL(err))
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return Credentials{}, ErrCode
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusForbidden:
		return Credentials{}, fmt.Errorf("%w: GitHub answered %s", ErrTryAgain, resp.Status)
	case resp.StatusCode >= 500:
		return Credentials{}, fmt.Errorf("%w: %w: GitHub answered %s", ErrTryAgain, ErrAnswerLost, resp.Status)
	case resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK:
		return Credentials{}, fmt.Errorf("%w the exchange of the code: it answered %s", ErrRefused, resp.Status)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return Credentials{}, fmt.Errorf("%w: %w: read the App's credentials: %w", ErrTryAgain, ErrAnswerLost, err)
	}
	return readCredentials(body)
}

// readCredentials reads the answer to an exchange. None of it is in an error.
func readCredentials(body []byte) (Credentials, error) {
	var out struct {
		wireApp
		PEM           string  `json:"pem"`
		WebhookSecret *string `json:"webhook_secret"`
	}
	if json.Unmarshal(body, &out) != nil {
		return Credentials{}, fmt.Errorf("%w: its answer holds no App: it is not the JSON that the documentation describes", ErrRefused)
	}
	c := Credentials{Self: out.self(), PrivateKey: secret.New(out.PEM)}
	if out.WebhookSecret != nil {
		c.WebhookSecret = secret.New(*out.WebhookSecret)
	}
	if c.ID <= 0 {
		return Credentials{}, fmt.Errorf("%w: its answer holds no App id", ErrRefused)
	}
	if _, err := newSigner(c.PrivateKey, time.Now); err != nil {
		return Credentials{}, fmt.Errorf("%w: App %d: %w", ErrRefused, c.ID, err)
	}
	return c, nil
}

// withoutURL drops the URL, which holds the code.
func withoutURL(err error) error {
	if u := (*url.Error)(nil); errors.As(err, &u) {
		return u.Err
	}
	return err
}

// ClockAhead asks a server for its time, with a request that needs no sign-in, and
// returns how far this machine's clock is ahead of it, within about a second.
func ClockAhead(ctx context.Context, client *http.Client, base string) (time.Duration, error) {
	base, err := baseURL(base)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Second, errTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/meta", nil)
	if err != nil {
		return 0, err
	}
	before := time.Now()
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	after := time.Now()
	at, err := http.ParseTime(resp.Header.Get("Date"))
	if err != nil {
		return 0, fmt.Errorf("%s does not tell its time", base)
	}
	// The header has whole seconds, cut off: on the average it is half a second early.
	middle := before.Add(after.Sub(before) / 2)
	return middle.Sub(at.Add(500 * time.Millisecond)).Round(100 * time.Millisecond), nil
}
