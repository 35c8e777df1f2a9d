// SPDX-License-Identifier: MIT

package scalesets

import (
	"net/http"
	"strings"
	"time"
)

// Call is one request to the service behind the scale sets, for who counts them.
type Call struct {
	Pool   string
	Kind   string // few enough to count by: connect, set, group, session, poll, acknowledge, acquire or register
	Status int    // 0: there was no answer
	Took   time.Duration
}

const (
	kindSignIn  = "sign_in" // a call of the App's
	kindConnect = "connect" // where the service is, and a token for it
	kindPoll    = "poll"    // held for some 50 s where there is nothing to tell
)

// kindOfCall returns the kind of a request. Where a message queue is the service says: it is
// whatever is nowhere else.
func kindOfCall(req *http.Request) string {
	path := req.URL.Path
	switch {
	case strings.HasSuffix(path, "/actions/runners/registration-token"):
		return kindSignIn
	case strings.HasSuffix(path, "/actions/runner-registration"):
		return kindConnect
	case strings.HasSuffix(path, "/acquirejobs"):
		return "acquire"
	case strings.HasSuffix(path, "/generatejitconfig"):
		return "register"
	case strings.Contains(path, "/sessions"):
		return "session"
	case strings.Contains(path, "_apis/runtime/runnergroups"):
		return "group"
	case strings.Contains(path, "_apis/runtime/runnerscalesets"):
		return "set"
	case req.Method == http.MethodDelete:
		return "acknowledge"
	default:
		return kindPoll
	}
}
