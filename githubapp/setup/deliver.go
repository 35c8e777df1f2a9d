// SPDX-License-Identifier: MIT

package setup

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/minifleet/minifleet/githubapp"
)

// deliveries looks at how GitHub's last deliveries fared.
func (i *inspection) deliveries(ctx context.Context) {
	list, err := i.App.Attempts(ctx)
	switch {
	case err != nil:
		i.add(Warn, "deliveries", "", "", "cannot be seen: %v", err)
		return
	case i.Pulls && len(list) > 0:
		i.add(OK, "deliveries", "", "", "GitHub made %d that can be pulled, the newest at %s", len(list), list[0].At.UTC().Format(time.DateTime))
		return
	case len(list) == 0 && i.Pulls:
		i.add(Warn, "deliveries", "", "see that the webhook is active at "+appSettings(i.self), "GitHub has made none yet in the last days")
		return
	case len(list) == 0:
		i.add(Warn, "deliveries", "", "try one: minifleet setup check --test-delivery", "GitHub has made none yet in the last days")
		return
	}
	failed := 0
	for _, a := range list {
		if !a.Delivered() {
			failed++
		}
	}
	newest := slices.MaxFunc(list, func(a, b githubapp.Attempt) int { return a.At.Compare(b.At) })
	at := newest.At.UTC().Format(time.DateTime)
	switch {
	case !newest.Delivered():
		why, do := Explain(newest)
		i.add(Fault, "deliveries", "", do, "the last one, %s at %s, failed: %s; %d of the last %d failed", newest.Event, at, why, failed, len(list))
	case failed > 0:
		last := slices.MaxFunc(list, func(a, b githubapp.Attempt) int { // the newest that failed
			if a.Delivered() != b.Delivered() {
				if a.Delivered() {
					return -1
				}
				return 1
			}
			return a.At.Compare(b.At)
		})
		why, do := Explain(last)
		i.add(Warn, "deliveries", "", do, "%d of the last %d failed, the last of these at %s: %s; the newest arrived", failed, len(list), last.At.UTC().Format(time.DateTime), why)
	default:
		i.add(OK, "deliveries", "", "", "the last %d arrived, the newest at %s", len(list), at)
	}
}

// Explain says why a delivery failed, and what to do. GitHub tells a status code and a
// few words; those words are not documented, so that they are shown too.
func Explain(a githubapp.Attempt) (why, do string) {
	words := strings.ToLower(a.Status)
	has := func(list ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(words, s) })
	}
	switch {
	case a.StatusCode == http.StatusUnauthorized:
		return "401: the signature is wrong", "put the content of github.webhook_secret_file into the App's webhook secret, or the other way round"
	case a.StatusCode == http.StatusForbidden:
		return "403: something before the controller refuses GitHub", "let GitHub's addresses through (hooks of https://api.github.com/meta)"
	case a.StatusCode == http.StatusNotFound || a.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Sprintf("%d: nothing answers at that path", a.StatusCode), "the URL ends in /webhook unless a proxy says otherwise; is it the controller that listens there?"
	case a.StatusCode == http.StatusServiceUnavailable:
		return "503: the controller could not store it", "see the controller's log, and its volume"
	case a.StatusCode == http.StatusGatewayTimeout || has("timed out", "timeout"):
		return "no answer in time (" + a.Status + ")", "a firewall that drops packets, or a proxy whose controller is not running"
	case has("resolve", "dns", "name or service", "no such host"):
		return "the name does not resolve (" + a.Status + ")", "give the host of the webhook URL a public DNS entry"
	case has("certificate", "ssl", "tls", "x509"):
		return "TLS failed (" + a.Status + ")", "show a certificate of a public authority, with its chain, for the name of the webhook URL"
	case has("connect", "refused", "unreachable", "reset"):
		return "no connection (" + a.Status + ")", "open the port to GitHub and let the controller or its proxy listen there"
	case a.StatusCode >= 300 && a.StatusCode < 400:
		return fmt.Sprintf("%d: GitHub follows no redirects", a.StatusCode), "set the webhook URL to where the redirect leads"
	case a.StatusCode == http.StatusBadGateway:
		return fmt.Sprintf("502 (%s): a proxy without a controller behind it, or no connection", a.Status), "start minifleet serve; see whether the proxy's address of it is right"
	default:
		return fmt.Sprintf("%d (%s)", a.StatusCode, a.Status), "see the delivery on the App's page, Advanced"
	}
}

// ErrNoDelivery says that GitHub has nothing that it could deliver once more.
var ErrNoDelivery = errors.New("GitHub has made no delivery that could be repeated")

// TestDelivery has GitHub deliver its ping, or else its last event, once more, and
// returns how that fared. It waits for the first delivery of a new App too.
func TestDelivery(ctx context.Context, app *githubapp.App, every, limit time.Duration) (githubapp.Attempt, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("GitHub does not tell how the test delivery fared within %s", limit))
	defer cancel()
	first, err := await(ctx, app, every, func(list []githubapp.Attempt) (githubapp.Attempt, bool) {
		if at := slices.IndexFunc(list, func(a githubapp.Attempt) bool { return a.Event == "ping" }); at >= 0 {
			return list[at], true
		}
		if len(list) > 0 {
			return list[0], true
		}
		return githubapp.Attempt{}, false
	})
	if err != nil {
		return first, fmt.Errorf("%w: %w", ErrNoDelivery, err)
	}
	if err := app.Repeat(ctx, first.ID); err != nil {
		return first, err
	}
	return await(ctx, app, every, func(list []githubapp.Attempt) (githubapp.Attempt, bool) {
		at := slices.IndexFunc(list, func(a githubapp.Attempt) bool {
			return a.GUID == first.GUID && a.ID != first.ID && !a.At.Before(first.At)
		})
		if at < 0 {
			return githubapp.Attempt{}, false
		}
		return list[at], true
	})
}

// await lists deliveries until pick finds what it wants.
func await(ctx context.Context, app *githubapp.App, every time.Duration, pick func([]githubapp.Attempt) (githubapp.Attempt, bool)) (githubapp.Attempt, error) {
	for {
		list, err := app.Attempts(ctx)
		if err != nil && !errors.Is(err, githubapp.ErrRefused) && ctx.Err() == nil {
			err = nil // GitHub's weather: asked again
		}
		if err != nil {
			return githubapp.Attempt{}, errors.Join(context.Cause(ctx), err)
		}
		if a, ok := pick(list); ok {
			return a, nil
		}
		if !sleep(ctx, every) {
			return githubapp.Attempt{}, context.Cause(ctx)
		}
	}
}
