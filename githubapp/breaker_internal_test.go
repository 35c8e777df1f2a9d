// SPDX-License-Identifier: MIT

package githubapp

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// Three failures in a row open the breaker; then only the question's failures count, and each
// doubles the pause; an answer ends it, and the row.
func TestBreaker(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &breaker{}
	fail := func(p *pass, after time.Duration, opens bool) {
		t.Helper()
		if opened := b.failed(p, now.Add(after)); opened != opens {
			t.Errorf("after %s: opened %t, want %t", after, opened, opens)
		}
	}
	other, third := &pass{lane: 1, path: "/1"}, &pass{lane: 3, path: "/3"}
	fail(other, 0, false)
	fail(other, time.Second, false)
	if b.answered() || b.open {
		t.Error("closed, though it was not open")
	}
	fail(other, 2*time.Second, false)
	fail(other, 3*time.Second, false)
	if b.open {
		t.Error("open after two failures in a row")
	}
	fail(third, 4*time.Second, true)
	if !b.open || !b.began.Equal(now.Add(2*time.Second)) || b.lane != 3 || b.path != "/3" || b.pause != time.Second {
		t.Errorf("opened: %+v", b)
	}
	before := *b
	fail(other, 5*time.Second, false) // a call that was under way
	if before.failures++; *b != before {
		t.Errorf("after a late failure: %+v, want %+v", *b, before)
	}
	moments := map[time.Duration]bool{}
	for _, pause := range []time.Duration{2, 4, 8, 16, 32, 60, 60, 60} {
		fail(&pass{lane: 9, path: "/9", probe: true}, time.Minute, false)
		wait := b.next.Sub(now.Add(time.Minute))
		if b.pause != pause*time.Second || wait < b.pause/2 || wait >= b.pause || b.lane != 3 || b.path != "/3" {
			t.Errorf("the question's failure: %+v, in %s; want a pause of %s", b, wait, pause*time.Second)
		}
		moments[wait] = true
	}
	if len(moments) < 4 {
		t.Errorf("every site would ask at the same moments: %v", moments)
	}
	if !b.answered() || *b != (breaker{}) {
		t.Errorf("after an answer: %+v", b)
	}
}

var breakerKey = sync.OnceValue(func() secret.Text {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return secret.New(string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})))
})

// blackout is a GitHub that gives tokens, and answers nothing else while it is down.
type blackout struct {
	mu    sync.Mutex
	down  bool
	hang  bool          // it answers nothing at all rather than breaking connections
	slow  time.Duration // for so long it hangs on after the question was given up
	asked []string      // without tokens
	at    []time.Time
}

func (b *blackout) RoundTrip(r *http.Request) (*http.Response, error) {
	answer := func(status int, body string) (*http.Response, error) {
		return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
	if strings.HasSuffix(r.URL.Path, "/access_tokens") {
		return answer(http.StatusCreated, fmt.Sprintf(`{"token":"t","expires_at":%q}`, time.Now().Add(time.Hour).Format(time.RFC3339)))
	}
	b.mu.Lock()
	b.asked, b.at = append(b.asked, r.Method+" "+r.URL.RequestURI()), append(b.at, time.Now())
	down, hang := b.down, b.hang
	b.mu.Unlock()
	if down && hang {
		<-r.Context().Done()
		time.Sleep(b.slow)
		return nil, r.Context().Err()
	}
	if down {
		return nil, errors.New("connection reset")
	}
	return answer(http.StatusOK, `{}`)
}

func (b *blackout) set(down, hang bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.down, b.hang = down, hang
}

func (b *blackout) questions() ([]string, []time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked), slices.Clone(b.at)
}

// outage is an App during one that began with calls of a lane and path.
func outage(t *testing.T, b *blackout, lane int64, path string) (a *App, changes *int) {
	t.Helper()
	changes = new(int)
	b.down = true
	a, err := New(Config{AppID: 4, PrivateKey: breakerKey(), Transport: b, Changed: func() { *changes++ }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	for range breakAfter {
		fares(t, a, &pass{lane: lane, path: path, class: ClassRegister}, outcomeFailed)
	}
	if since, _, out := a.Outage(); !out || !since.Equal(time.Now()) || *changes != 1 {
		t.Fatalf("since %s, out %t, %d changes", since, out, *changes)
	}
	return a, changes
}

// fares has one request go through the gate and end so.
func fares(t *testing.T, a *App, p *pass, o outcome) {
	t.Helper()
	p.points = 1
	if err := a.gate.enter(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	a.gate.leave(p, o)
}

// Only what GitHub's API answers or fails to answer counts: no call that its caller gave up, and
// no token, which another part of GitHub gives.
func TestOutageCountsOnlyAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, err := New(Config{AppID: 4, PrivateKey: breakerKey(), Transport: &blackout{}})
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		for range 2 {
			fares(t, a, &pass{lane: 1, path: "/"}, outcomeFailed)
		}
		fares(t, a, &pass{lane: 1, path: "/"}, outcomeDropped)
		fares(t, a, &pass{path: "/", class: ClassToken}, outcomeAnswered)
		if _, _, out := a.Outage(); out {
			t.Error("a call that was given up counts as a failure")
		}
		fares(t, a, &pass{lane: 1, path: "/"}, outcomeFailed)
		if _, _, out := a.Outage(); !out {
			t.Error("a call that was given up, or a token, ends the row of failures")
		}
	})
}

// The question is asked near to what failed, after pauses that grow, by one alone; whoever
// calls meanwhile is told of the outage; the first answer ends it.
func TestOutageIsAskedAbout(t *testing.T) {
	for path, c := range map[string]struct {
		lane int64
		want string
	}{
		appsMint:                            {place, "GET /orgs/acme/actions/runners?per_page=1"},
		"/repos/acme/app/actions/runners/5": {place, "GET /repos/acme/app/actions/runners?per_page=1"},
		"/app/installations":                {0, "GET /app"},
		"/orgs/acme/actions/runners":        {0, "GET /app"}, // never so: who asks would be no installation
	} {
		for _, hang := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s hangs %t", path, hang), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					b := &blackout{hang: hang}
					a, changes := outage(t, b, c.lane, path)
					began := time.Now()
					time.Sleep(20 * time.Minute)
					err := a.gate.enter(t.Context(), &pass{lane: 1, path: "/", priority: PriorityEnd})
					limited := (*RateLimited)(nil)
					if _, next, _ := a.Outage(); !errors.As(err, &limited) || !limited.Outage.Equal(began) || !next.After(time.Now()) && !hang {
						t.Errorf("a call meanwhile: %v, the next question at %s", err, next)
					}
					asked, at := b.questions()
					if slices.ContainsFunc(asked, func(s string) bool { return s != c.want }) {
						t.Errorf("asked %q, want %q alone", asked, c.want)
					}
					took := time.Duration(0) // of one that hangs
					if hang {
						took = 30 * time.Second
					}
					last := began
					for i, when := range at {
						pause := min(time.Second<<i, time.Minute)
						if gap := when.Sub(last); gap < pause/2 || gap >= pause {
							t.Errorf("question %d came %s after the last, want within a pause of %s", i, gap, pause)
						}
						last = when.Add(took)
					}
					if len(at) < 12 {
						t.Errorf("%d questions in 20 minutes", len(at))
					}
					b.set(false, false)
					time.Sleep(2 * time.Minute)
					if _, _, out := a.Outage(); out || *changes != 2 {
						t.Errorf("out %t after an answer, %d changes", out, *changes)
					}
					asked, _ = b.questions()
					time.Sleep(time.Hour)
					if later, _ := b.questions(); len(later) != len(asked) {
						t.Errorf("%d questions after the end", len(later)-len(asked))
					}
				})
			})
		}
	}
}

// A question that cannot be sent, because GitHub wants nothing of that installation, is put off
// like one that failed.
func TestOutageQuestionThatCannotBeSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &blackout{}
		a, _ := outage(t, b, place, appsMint)
		a.gate.mu.Lock()
		a.gate.lane(place).shut = time.Now().Add(5 * time.Minute)
		a.gate.mu.Unlock()
		time.Sleep(4 * time.Minute)
		if asked, _ := b.questions(); len(asked) != 0 {
			t.Errorf("asked %q", asked)
		}
		if _, next, out := a.Outage(); !out || !next.After(time.Now()) {
			t.Errorf("out %t, the next question at %s", out, next)
		}
		b.set(false, false)
		time.Sleep(2 * time.Minute)
		if _, _, out := a.Outage(); out {
			t.Error("no question was asked once GitHub took calls again")
		}
	})
}

// Calls that were under way and fail late start no second question beside the one under way.
func TestOutageOneQuestionAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &blackout{hang: true}
		a, _ := outage(t, b, place, appsMint)
		for i := range 25 {
			late := &pass{lane: place, path: appsMint, resource: "core"}
			a.gate.mu.Lock()
			a.gate.begin(late)
			a.gate.mu.Unlock()
			a.gate.leave(late, outcomeFailed)
			if i > 4 { // the first of them before it is asked
				time.Sleep(time.Second)
			}
		}
		if asked, _ := b.questions(); len(asked) != 1 {
			t.Errorf("%d questions at once", len(asked))
		}
	})
}

// A question whose time has come just as another call fails is asked once, and Close ends it.
func TestOutageQuestionWhoseClockIsSetAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &blackout{hang: true}
		a, _ := outage(t, b, place, appsMint)
		a.gate.mu.Lock()
		time.Sleep(time.Until(a.gate.breaker.next)) // the clock has rung: who is to ask waits for the lock
		a.gate.ask(time.Now())
		a.gate.mu.Unlock()
		synctest.Wait()
		if asked, _ := b.questions(); len(asked) != 1 {
			t.Errorf("%d questions at once", len(asked))
		}
		began := time.Now()
		a.Close()
		if took := time.Since(began); took != 0 {
			t.Errorf("the end took %s", took)
		}
	})
}

// Close ends a question that is under way, and none is asked afterwards.
func TestOutageCloses(t *testing.T) {
	for name, at := range map[string]time.Duration{"before a question": 0, "during one": 2 * time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := &blackout{hang: true, slow: time.Second}
				a, _ := outage(t, b, place, appsMint)
				time.Sleep(at)
				asked, _ := b.questions()
				began := time.Now()
				a.Close()
				if took := time.Since(began); took != time.Duration(len(asked))*b.slow {
					t.Errorf("it took %s with %d questions under way", took, len(asked))
				}
				late := &pass{lane: place, path: appsMint, resource: "core"}
				a.gate.mu.Lock()
				a.gate.begin(late)
				a.gate.mu.Unlock()
				a.gate.leave(late, outcomeFailed)
				time.Sleep(10 * time.Minute)
				if later, _ := b.questions(); len(later) != len(asked) {
					t.Errorf("%d questions after the end", len(later)-len(asked))
				}
			})
		})
	}
}

// A token is asked for by the App itself: it counts for no installation, whose limits do not
// hold it back.
func TestTokensAreTheAppsOwn(t *testing.T) {
	t.Parallel()
	var calls []Call
	a, err := New(Config{AppID: 4, PrivateKey: breakerKey(), Transport: &blackout{}, Observe: func(c Call) { calls = append(calls, c) }})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	a.gate.lane(place).shut = time.Now().Add(time.Hour)
	in, err := a.installation(place)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.sign.Token(t.Context()); err != nil {
		t.Error(err)
	}
	if len(calls) != 1 || calls[0].Installation != 0 || calls[0].Class != ClassToken || a.gate.lane(0).minute.sum != writePoints {
		t.Errorf("%+v", calls)
	}
}
