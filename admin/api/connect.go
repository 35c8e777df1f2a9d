// SPDX-License-Identifier: MIT

package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/minifleet/minifleet/secret"
)

const clientTimeout = 30 * time.Second

// Connect returns a client of the controller at a URL, which sends the token
// with every request. It refuses to send a token in the clear: plain HTTP is
// for loopback alone. A nil hc is a client with a timeout of 30 seconds. A
// redirection is never followed, because it could carry the token elsewhere.
func Connect(server string, token secret.Text, hc *http.Client) (*ClientWithResponses, error) {
	if err := checkServer(server); err != nil {
		return nil, err
	}
	if token.Empty() {
		return nil, errors.New("the operator's token is empty")
	}
	own := http.Client{Timeout: clientTimeout}
	if hc != nil {
		own = *hc
	}
	own.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return NewClientWithResponses(server, WithHTTPClient(&own),
		WithRequestEditorFn(func(_ context.Context, r *http.Request) error {
			r.Header.Set("Authorization", "Bearer "+token.Reveal())
			return nil
		}))
}

func checkServer(server string) error {
	u, err := url.Parse(server)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http"):
		return fmt.Errorf("server address %q: want a URL such as https://minifleet.example.com or http://127.0.0.1:8080", server)
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("server address of host %s: want no user, query or fragment in it", u.Host)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return fmt.Errorf("server address %q: the token would travel in the clear; use https, or http on loopback", server)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
