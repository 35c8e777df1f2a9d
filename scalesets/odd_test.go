// SPDX-License-Identifier: MIT

package scalesets_test

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// garbling is a network that changes the first answers of a message queue that hold a message.
type garbling struct {
	change func(body string) string
	mu     sync.Mutex
	times  int // answers that it changes yet
}

func (g *garbling) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil || !queued(req) || req.Method != http.MethodGet || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.times > 0 {
		g.times--
		body = []byte(g.change(string(body)))
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	return resp, nil
}

// A message that is not understood holds up those behind it for a while, not for ever; its job
// is found by GitHub's count. One that was only garbled on its way is read.
func TestMessageThatIsNotUnderstood(t *testing.T) {
	const passed = "passed over: it is not understood"
	for name, c := range map[string]struct {
		change func(string) string
		times  int
		over   bool
	}{
		"of another kind":    {func(s string) string { return strings.Replace(s, "RunnerScaleSetJobMessages", "Other", 1) }, 3, true},
		"its jobs":           {func(s string) string { return strings.Replace(s, `"body":"[`, `"body":"{`, 1) }, 3, true},
		"without statistics": {func(s string) string { return strings.Replace(s, `"statistics"`, `"others"`, 1) }, 3, true},
		"garbled twice":      {func(s string) string { return strings.Replace(s, "RunnerScaleSetJobMessages", "Other", 1) }, 2, false},
		"cut each time":      {func(s string) string { return s[:len(s)-1] }, 5, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, githubsim.Options{})
			w.wire = &garbling{change: c.change, times: c.times}
			w.run()
			w.reads(2)
			w.queue("build")
			if c.over {
				w.untilLog(passed, 1)
				w.untilBooks("? queued") // by GitHub's count
			} else {
				w.untilBooks("build queued")
			}
			w.queue("next")
			if c.over {
				w.untilBooks("? queued", "next queued")
			} else {
				w.untilBooks("build queued", "next queued")
			}
			set := w.untilSet("all messages are acknowledged", func(s githubsim.ScaleSet) bool { return s.Unread == 0 })
			if want := c.times + 1 + map[bool]int{false: 1}[c.over]; set.Sent != want {
				t.Errorf("messages were sent %d times, want %d", set.Sent, want)
			}
			w.stop()
			if got := w.odd.Load(); got != map[bool]int32{true: 1}[c.over] || strings.Contains(w.log.String(), passed) != c.over {
				t.Errorf("%d messages were passed over", got)
			}
		})
	}
}
