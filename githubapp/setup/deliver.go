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

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/githubapp"
)

// deliveries looks at how GitHub's last deliveries fared.
func (i *inspection) deliveries(ctx context.Context) {
	list, _, err := i.App.Deliveries(ctx, "")
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
		if !a.OK {
			failed++
		}
	}
	newest := slices.MaxFunc(list, func(a, b fleet.Attempt) int { return a.At.Compare(b.At) })
	at := newest.At.UTC().Format(time.DateTime)
	switch {
	case !newest.OK:
		why, do := Explain(newest)
		i.add(Fault, "deliveries", "", do, "the last one, %s at %s, failed: %s; %d of the last %d failed", newest.Event, at, why, failed, len(list))
	case failed > 0:
		last := slices.MaxFunc(list, func(a, b fleet.Attempt) int { // the newest that failed
			if a.OK != b.OK {
				if a.OK {
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
func Explain(a fleet.Attempt) (why, do string) {
	words := strings.ToLower(a.Words)
	has := func(list ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(words, s) })
	}
	switch {
	case a.Code == http.StatusUnauthorized:
		return "401: the signature is wrong", "put the content of github.webhook_secret_file into the App's webhook secret, or the other way round"
	case a.Code == http.StatusForbidden:
		return "403: something before the controller refuses GitHub", "let GitHub's addresses through (hooks of https://api.github.com/meta)"
	case a.Code == http.StatusNotFound || a.Code == http.StatusMethodNotAllowed:
		return fmt.Sprintf("%d: nothing answers at that path", a.Code), "the URL ends in /webhook unless a proxy says otherwise; is it the controller that listens there?"
	case a.Code == http.StatusServiceUnavailable:
		return "503: the controller could not store it", "see the controller's log, and its volume"
	case a.Code == http.StatusGatewayTimeout || has("timed out", "timeout"):
		return "no answer in time (" + a.Words + ")", "a firewall that drops packets, or a proxy whose controller is not running"
	case has("resolve", "dns", "name or service", "no such host"):
		return "the name does not resolve (" + a.Words + ")", "give the host of the webhook URL a public DNS entry"
	case has("certificate", "ssl", "tls", "x509"):
		return "TLS failed (" + a.Words + ")", "show a certificate of a public authority, with its chain, for the name of the webhook URL"
	case has("connect", "refused", "unreachable", "reset"):
		return "no connection (" + a.Words + ")", "open the port to GitHub and let the controller or its proxy listen there"
	case a.Code >= 300 && a.Code < 400:
		return fmt.Sprintf("%d: GitHub follows no redirects", a.Code), "set the webhook URL to where the redirect leads"
	case a.Code == http.StatusBadGateway:
		return fmt.Sprintf("502 (%s): a proxy without a controller behind it, or no connection", a.Words), "start minifleet serve; see whether the proxy's address of it is right"
	default:
		return fmt.Sprintf("%d (%s)", a.Code, a.Words), "see the delivery on the App's page, Advanced"
	}
}

// ErrNoDelivery says that GitHub has nothing that it could deliver once more.
var ErrNoDelivery = errors.New("GitHub has made no delivery that could be repeated")

// TestDelivery has GitHub deliver its ping, or else its last event, once more, and
// returns how that fared. It waits for the first delivery of a new App too.
func TestDelivery(ctx context.Context, app *githubapp.App, every, limit time.Duration) (fleet.Attempt, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("GitHub does not tell how the test delivery fared within %s", limit))
	defer cancel()
	first, err := await(ctx, app, every, func(list []fleet.Attempt) (fleet.Attempt, bool) {
		if at := slices.IndexFunc(list, func(a fleet.Attempt) bool { return a.Event == "ping" }); at >= 0 {
			return list[at], true
		}
		if len(list) > 0 {
			return list[0], true
		}
		return fleet.Attempt{}, false
	})
	if err != nil {
		return first, fmt.Errorf("%w: %w", ErrNoDelivery, err)
	}
	if err := app.Repeat(ctx, first.ID); err != nil {
		return first, err
	}
	return await(ctx, app, every, func(list []fleet.Attempt) (fleet.Attempt, bool) {
		at := slices.IndexFunc(list, func(a fleet.Attempt) bool {
			return a.GUID == first.GUID && a.ID != first.ID && !a.At.Before(first.At)
		})
		if at < 0 {
			return fleet.Attempt{}, false
		}
		return list[at], true
	})
}

// await lists deliveries until pick finds what it wants.
func await(ctx context.Context, app *githubapp.App, every time.Duration, pick func([]fleet.Attempt) (fleet.Attempt, bool)) (fleet.Attempt, error) {
	for {
		list, _, err := app.Deliveries(ctx, "")
		if err != nil && !errors.Is(err, githubapp.ErrRefused) && ctx.Err() == nil {
			err = nil // GitHub's weather: asked again
		}
		if err != nil {
			return fleet.Attempt{}, errors.Join(context.Cause(ctx), err)
		}
		if a, ok := pick(list); ok {
			return a, nil
		}
		if !sleep(ctx, every) {
			return fleet.Attempt{}, context.Cause(ctx)
		}
	}
}
