// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/minifleet/minifleet/githubapp"
)

// silent is a GitHub that never answers a request for a token.
type silent struct {
	http.RoundTripper
	asked chan struct{}
}

func (s silent) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodPost {
		return s.RoundTripper.RoundTrip(r)
	}
	s.asked <- struct{}{}
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// A call that waits for a token that another asks for gives up when its own time is over.
func TestTokenOfAnother(t *testing.T) {
	t.Parallel()
	o := newOdd(t)
	way := silent{&http.Transport{}, make(chan struct{}, 2)}
	t.Cleanup(way.RoundTripper.(*http.Transport).CloseIdleConnections)
	a, err := githubapp.New(githubapp.Config{AppID: appID, PrivateKey: keyPEM(), BaseURL: o.server.URL, Transport: way})
	if err != nil {
		t.Fatal(err)
	}
	first, leave := context.WithCancel(t.Context())
	left := make(chan error, 2)
	ask := func(ctx context.Context) {
		_, _, err := a.GetRunner(ctx, org, 1)
		left <- err
	}
	go ask(first)
	<-way.asked
	second, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	go ask(second)
	select {
	case err := <-left:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits for as long as the other does")
	}
	leave()
	<-left
}
