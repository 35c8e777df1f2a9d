// SPDX-License-Identifier: MIT

package githubsim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net"
	"net/http"
	neturl "net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/minifleet/minifleet/secret"
)

// hookEngine delivers webhooks: one goroutine per delivery, each after a random
// delay, so that they arrive late and out of order; when kind, one goroutine
// for all, in order and at once. Every attempt is kept. It never tries again by itself.
type hookEngine struct {
	sim    *Sim
	client *http.Client
	own    *http.Transport // closed with the engine; nil if the client was given

	mu     sync.Mutex // guards everything below
	url    string
	secret secret.Text
	// inactive hooks deliver nothing, as after a manifest that asks for that.
	inactive bool
	content  string // of deliveries; "" is json
	insecure bool   // certificates are not checked
	kind     bool
	queue    []outgoing // kind mode
	wake     chan struct{}
	kept     []*delivery
	nextID   int64
	active   int // queued, delayed or under way
	closed   bool
}

// outgoing is a delivery that is still to be made.
type outgoing struct {
	guid, event, action string
	body                []byte
	install, repo       int64
	job, run            int64
	delay               time.Duration
	repeat, redelivery  bool
	kept                *Fault // misbehaviour: recorded as it says, never sent
}

// delivery is one attempt, as kept.
type delivery struct {
	Delivery
	install, repo   int64
	requestHeaders  map[string]string
	responseHeaders map[string]string
	response        string
	throttledAt     time.Time
	bare            bool // its payload is not shown
}

const keptDeliveries = 20_000

func newHookEngine(s *Sim) *hookEngine {
	e := &hookEngine{
		sim: s, client: s.opt.WebhookClient, url: s.opt.WebhookURL, secret: s.opt.WebhookSecret, kind: s.opt.Kind,
		wake: make(chan struct{}, 1), nextID: deliveryIDs,
	}
	if e.client == nil {
		e.own = &http.Transport{MaxIdleConnsPerHost: 16, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
		e.client = &http.Client{Transport: e.own, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return e
}

// shut makes send ignore what comes, so that no goroutine starts any more.
func (e *hookEngine) shut() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}

func (e *hookEngine) close() {
	if e.own != nil {
		e.own.CloseIdleConnections()
	}
}

func (e *hookEngine) secretNow() secret.Text {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.secret
}

// run delivers what kind mode queues, until ctx ends.
func (e *hookEngine) run(ctx context.Context) {
	for {
		e.mu.Lock()
		var next *outgoing
		if len(e.queue) > 0 {
			next = &e.queue[0]
			e.queue = e.queue[1:]
		}
		e.mu.Unlock()
		if next != nil {
			e.deliver(ctx, *next)
			continue
		}
		select {
		case <-e.wake:
		case <-ctx.Done():
			return
		}
	}
}

// send takes a delivery over. The caller may hold the Sim's lock.
func (e *hookEngine) send(out outgoing) {
	fault := e.sim.faults.forDelivery(out)
	switch {
	case fault == nil:
	case fault.Kind == DeliveryLost:
		return // as on GitHub: there is no trace of an event that was never sent
	case fault.Kind == DeliveryLate:
		out.delay = fault.Delay
	default:
		out.kept = fault
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.url == "" || e.inactive || e.closed {
		return
	}
	if e.kind && out.delay == 0 {
		e.active++
		e.queue = append(e.queue, out)
		select {
		case e.wake <- struct{}{}:
		default:
		}
		return
	}
	e.launch(out)
	if !e.kind && e.sim.rng.chance(e.sim.opt.RepeatRate) {
		out.repeat = true
		e.launch(out)
	}
}

// launch delivers in a goroutine of its own. The caller holds mu.
func (e *hookEngine) launch(out outgoing) {
	delay := out.delay
	if delay == 0 {
		delay = e.sim.rng.upTo(e.sim.timing.DeliveryDelay)
	}
	e.active++
	e.sim.wg.Go(func() {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
			e.deliver(e.sim.ctx, out)
		case <-e.sim.ctx.Done():
		}
	})
}

// deliver makes one attempt and keeps its outcome.
func (e *hookEngine) deliver(ctx context.Context, out outgoing) {
	e.mu.Lock()
	url, key, form := e.url, e.secret, e.content == "form"
	e.nextID++
	d := &delivery{
		Delivery: Delivery{
			ID: e.nextID, GUID: out.guid, Event: out.event, Action: out.action, Redelivery: out.redelivery, Repeat: out.repeat,
			DeliveredAt: time.Now(), JobID: out.job, RunID: out.run, Payload: string(out.body),
		},
		install: out.install, repo: out.repo, responseHeaders: map[string]string{},
	}
	e.mu.Unlock()
	e.sim.sent(out, d.DeliveredAt)
	if form {
		out.body = []byte("payload=" + neturl.QueryEscape(string(out.body)))
	}
	d.requestHeaders = e.headers(out, key)
	if form {
		d.requestHeaders["Content-Type"] = "application/x-www-form-urlencoded"
	}
	switch f := out.kept; {
	case f == nil:
		e.post(ctx, url, out.body, d)
	case f.Kind == DeliverySwallowed:
		d.StatusCode, d.Status = http.StatusOK, "OK"
	case f.Kind == DeliveryThrottled:
		d.StatusCode, d.Status, d.throttledAt = http.StatusTooManyRequests, "throttled", d.DeliveredAt
	default:
		d.StatusCode, d.bare = cmp.Or(f.Status, http.StatusBadGateway), f.Kind == DeliveryBare
		d.Status = statusText(d.StatusCode)
	}
	d.Duration = time.Since(d.DeliveredAt)
	if ctx.Err() != nil {
		return // the Sim is closing: what came of it is nobody's fault
	}
	e.mu.Lock()
	e.kept = append(e.kept, d)
	if extra := len(e.kept) - keptDeliveries; extra > 0 {
		e.kept = slices.Delete(e.kept, 0, extra)
	}
	e.active--
	e.mu.Unlock()
	e.sim.log.Debug("webhook delivered", "event", out.event, "action", out.action, "guid", out.guid, "status", d.StatusCode)
	e.sim.notify()
}

func (e *hookEngine) headers(out outgoing, key secret.Text) map[string]string {
	headers := map[string]string{
		"Accept": "*/*", "Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/5f0dcc1",
		"X-GitHub-Delivery": out.guid, "X-GitHub-Event": out.event, "X-GitHub-Hook-ID": fmt.Sprint(hookID),
		"X-GitHub-Hook-Installation-Target-ID": fmt.Sprint(e.sim.opt.AppID), "X-GitHub-Hook-Installation-Target-Type": "integration",
		"X-Hub-Signature":     "sha1=" + sign(sha1.New, key, out.body),
		"X-Hub-Signature-256": "sha256=" + sign(sha256.New, key, out.body),
	}
	if v := e.sim.opt.Enterprise; v != "" {
		headers["X-GitHub-Enterprise-Host"], headers["X-GitHub-Enterprise-Version"] = "github.example.com", v
	}
	return headers
}

func sign(h func() hash.Hash, key secret.Text, body []byte) string {
	mac := hmac.New(h, []byte(key.Reveal()))
	mac.Write(body)
	return hex.EncodeToString(mac.Sum(nil))
}

func (e *hookEngine) post(ctx context.Context, url string, body []byte, d *delivery) {
	ctx, cancel := context.WithTimeoutCause(ctx, e.sim.timing.DeliveryTimeout, errTimedOut)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		d.StatusCode, d.Status = http.StatusBadGateway, "invalid url"
		return
	}
	for name, value := range d.requestHeaders {
		req.Header.Set(name, value)
	}
	resp, err := e.client.Do(req)
	switch {
	case errors.Is(context.Cause(ctx), errTimedOut):
		d.StatusCode, d.Status = http.StatusGatewayTimeout, "timed out"
	case err != nil:
		d.StatusCode, d.Status = http.StatusBadGateway, "failed to connect to host"
	}
	if err != nil {
		return
	}
	defer resp.Body.Close()
	answer, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // half an answer is an answer
	d.StatusCode, d.Status, d.response = resp.StatusCode, statusText(resp.StatusCode), string(answer)
	for name, values := range resp.Header {
		d.responseHeaders[name] = strings.Join(values, ", ")
	}
}

var errTimedOut = errors.New("webhook receiver did not answer in time")

func statusText(code int) string {
	if code >= 200 && code < 300 {
		return "OK"
	}
	return orString(http.StatusText(code), "Invalid HTTP Response: "+fmt.Sprint(code))
}

// redeliver sends a kept delivery again, under its GUID.
func (e *hookEngine) redeliver(id int64) bool {
	e.mu.Lock()
	d := e.find(id)
	e.mu.Unlock()
	if d == nil {
		return false
	}
	e.send(outgoing{
		guid: d.GUID, event: d.Event, action: d.Action, body: []byte(d.Payload), install: d.install, repo: d.repo,
		job: d.JobID, run: d.RunID, redelivery: true,
	})
	return true
}

// find returns a kept delivery that GitHub's list still has. The caller holds mu.
func (e *hookEngine) find(id int64) *delivery {
	i := slices.IndexFunc(e.kept, func(d *delivery) bool { return d.ID == id })
	if i < 0 || e.expired(e.kept[i]) {
		return nil
	}
	return e.kept[i]
}

func (e *hookEngine) expired(d *delivery) bool {
	return time.Since(d.DeliveredAt) > e.sim.timing.DeliveriesKept
}

// listed returns what GitHub's list has, the newest first. What is in it does not change.
func (e *hookEngine) listed() []*delivery {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := slices.DeleteFunc(slices.Clone(e.kept), e.expired)
	slices.SortFunc(out, func(a, b *delivery) int { return int(b.ID - a.ID) })
	return out
}

// all returns copies of the kept deliveries, oldest first.
func (e *hookEngine) all() []delivery {
	e.mu.Lock()
	defer e.mu.Unlock()
	out := make([]delivery, 0, len(e.kept))
	for _, d := range e.kept {
		c := *d
		c.requestHeaders, c.responseHeaders = maps.Clone(d.requestHeaders), maps.Clone(d.responseHeaders)
		out = append(out, c)
	}
	return out
}
