// SPDX-License-Identifier: MIT

package githubapp_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
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
	synctest.Test(t, func(t *testing.T) {
		o.t = t
		way := silent{direct{o}, make(chan struct{}, 2)}
		a := o.app(func(c *githubapp.Config) { c.Transport = way })
		first, leave := context.WithCancel(t.Context())
		left := make(chan error, 2)
		ask := func(ctx context.Context) {
			_, _, err := a.GetRunner(ctx, org, 1)
			left <- err
		}
		go ask(first)
		<-way.asked
		began := time.Now()
		second, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		go ask(second)
		if err := <-left; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("it waited for %s, as the other does", took)
		}
		leave()
		<-left
	})
}
