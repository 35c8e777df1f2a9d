// SPDX-License-Identifier: MIT

package vm

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"testing"
)

// says is whatever listens on vmm.sock: it gives one answer to everything.
type says struct {
	status int
	body   []byte
}

func (s says) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: s.status, Status: "a status of its own", Body: io.NopCloser(bytes.NewReader(s.body)), Request: r}, nil
}

// FuzzAnswer lets anything answer in the vmm's place.
func FuzzAnswer(f *testing.F) {
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		c := client{&http.Client{
			Transport:     says{status, body},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
		for name, ask := range map[string]func() (State, error){
			"state": func() (State, error) { return c.state(t.Context(), 0, 0) },
			"stop":  func() (State, error) { return c.stop(t.Context()) },
		} {
			s, err := ask()
			switch {
			case err != nil && (len(err.Error()) > 8<<10 || s != State{}):
				t.Errorf("%s: %+v with an error of %d bytes", name, s, len(err.Error()))
			case err == nil && (status >= http.StatusBadRequest || len(s.Detail) > MaxStatusDetail+8 ||
				!slices.Contains([]Phase{PhaseStarting, PhaseRunning, PhaseStopping, PhaseFinal}, s.Phase)):
				t.Errorf("%s: believed %+v", name, s)
			}
		}
	})
}
