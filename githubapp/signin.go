// SPDX-License-Identifier: MIT

package githubapp

import (
	"net/http"

	"github.com/bradleyfalzon/ghinstallation/v2"
)

// signIn signs the requests of an installation. The library's transport asks for a new
// token under a mutex, where whoever comes meanwhile waits for as long as that request
// takes and not for as long as it has time. Here one at a time sees to the token, and
// nobody waits for its turn longer than its own context lets it.
type signIn struct {
	inner *ghinstallation.Transport
	turn  chan struct{} // holds one element while somebody sees to the token
}

func newSignIn(inner *ghinstallation.Transport) *signIn {
	return &signIn{inner: inner, turn: make(chan struct{}, 1)}
}

// RoundTrip implements http.RoundTripper.
func (s *signIn) RoundTrip(req *http.Request) (*http.Response, error) {
	select {
	case s.turn <- struct{}{}:
	case <-req.Context().Done():
		closeBody(req)
		return nil, req.Context().Err()
	}
	_, err := s.inner.Token(req.Context())
	<-s.turn
	if err != nil {
		closeBody(req)
		return nil, err
	}
	return s.inner.RoundTrip(req)
}
