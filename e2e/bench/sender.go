// SPDX-License-Identifier: MIT

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// sender plays GitHub's deliveries: signed, of the size that GitHub's have, over
// connections of its own, so that the moment of the socket write is known and little
// else is done.
type sender struct {
	address string // of the webhook
	secret  []byte
	app     int64
	install int64
	payload map[string]any

	mu    sync.Mutex // guards what follows
	guid  int
	conns []*conn // idle
}

type conn struct {
	net.Conn
	in *bufio.Reader
}

func newSender(payload, url, secret string, app, installation int64) (*sender, error) {
	raw, err := os.ReadFile(payload)
	if err != nil {
		return nil, err
	}
	s := &sender{address: strings.TrimPrefix(url, "http://"), secret: []byte(secret), app: app, install: installation}
	return s, json.Unmarshal(raw, &s.payload)
}

// news is what a delivery tells of a job.
type news struct {
	job    int64
	action string // queued, in_progress, completed
	labels []string
	runner string // its name at GitHub
}

// request makes a delivery, ready to be written.
func (s *sender) request(n news) ([]byte, error) {
	s.mu.Lock()
	s.guid++
	guid := fmt.Sprintf("be7c4000-0000-4000-8000-%012d", s.guid)
	job, ok := s.payload["workflow_job"].(map[string]any)
	if !ok {
		s.mu.Unlock()
		return nil, errors.New("the payload holds no workflow_job")
	}
	s.payload["action"] = n.action
	s.payload["installation"] = map[string]any{"id": s.install}
	s.payload["repository"].(map[string]any)["full_name"] = owner + "/" + repo
	job["id"], job["run_id"], job["name"], job["labels"], job["status"] = n.job, 1_000_000+n.job, fmt.Sprint("job-", n.job), n.labels, n.action
	job["conclusion"], job["runner_name"] = nil, nil
	if n.runner != "" {
		job["runner_name"] = n.runner
	}
	if n.action == "completed" {
		job["conclusion"] = "success"
	}
	body, err := json.Marshal(s.payload)
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	mac := hmac.New(sha256.New, s.secret)
	mac.Write(body)
	var out bytes.Buffer
	fmt.Fprintf(&out, "POST /webhook HTTP/1.1\r\nHost: %s\r\nUser-Agent: GitHub-Hookshot/be7c400\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"+
		"X-GitHub-Event: workflow_job\r\nX-GitHub-Delivery: %s\r\nX-GitHub-Hook-Installation-Target-Type: integration\r\n"+
		"X-GitHub-Hook-Installation-Target-ID: %d\r\nX-Hub-Signature-256: sha256=%s\r\n\r\n",
		s.address, len(body), guid, s.app, hex.EncodeToString(mac.Sum(nil)))
	out.Write(body)
	return out.Bytes(), nil
}

// sent is one delivery that was answered.
type sent struct{ wrote, answered time.Time }

// send writes a delivery and waits for its answer.
func (s *sender) send(request []byte) (sent, error) {
	c, err := s.take()
	if err != nil {
		return sent{}, err
	}
	var t sent
	t.wrote = time.Now()
	if _, err := c.Write(request); err != nil {
		return t, errors.Join(err, c.Close())
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return t, errors.Join(err, c.Close())
	}
	body, err := io.ReadAll(res.Body)
	t.answered = time.Now()
	res.Body.Close()
	if err != nil || res.StatusCode != http.StatusAccepted || !bytes.Contains(body, []byte("processed")) {
		return t, errors.Join(fmt.Errorf("a delivery was answered %s: %s", res.Status, body), err, c.Close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns = append(s.conns, c)
	return t, nil
}

func (s *sender) take() (*conn, error) {
	s.mu.Lock()
	if n := len(s.conns); n > 0 {
		c := s.conns[n-1]
		s.conns = s.conns[:n-1]
		s.mu.Unlock()
		return c, nil
	}
	s.mu.Unlock()
	c, err := net.Dial("tcp", s.address) //nolint:noctx // loopback
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// connect opens connections ahead of a burst.
func (s *sender) connect(n int) error {
	for range n {
		c, err := net.Dial("tcp", s.address) //nolint:noctx // loopback
		if err != nil {
			return err
		}
		s.conns = append(s.conns, &conn{c, bufio.NewReader(c)})
	}
	return nil
}

func (s *sender) close() {
	for _, c := range s.conns {
		c.Close()
	}
}

// tell makes and sends one delivery.
func (s *sender) tell(n news) (sent, error) {
	request, err := s.request(n)
	if err != nil {
		return sent{}, err
	}
	return s.send(request)
}

// steady sends deliveries at a constant rate, whatever becomes of those before. The
// returned times begin at the moment when each was due.
func (s *sender) steady(ctx context.Context, requests [][]byte, rate float64) ([]sent, error) {
	out, errs := make([]sent, len(requests)), make([]error, len(requests))
	var wg sync.WaitGroup
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, r := range requests {
		due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
		timer.Reset(time.Until(due))
		select {
		case <-timer.C:
		case <-ctx.Done():
			wg.Wait()
			return nil, context.Cause(ctx)
		}
		wg.Go(func() {
			out[i], errs[i] = s.send(r)
			out[i].wrote = due
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// burst sends deliveries as fast as they are taken, over n connections.
func (s *sender) burst(requests [][]byte, n int) ([]sent, error) {
	if err := s.connect(n - len(s.conns)); err != nil {
		return nil, err
	}
	out, errs := make([]sent, len(requests)), make([]error, len(requests))
	next := make(chan int, len(requests))
	for i := range requests {
		next <- i
	}
	close(next)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for i := range next {
				out[i], errs[i] = s.send(requests[i])
			}
		})
	}
	wg.Wait()
	return out, errors.Join(errs...)
}

// span returns the first write and the last answer.
func span(all []sent) (first, last time.Time) {
	first = all[0].wrote
	for _, t := range all {
		if t.wrote.Before(first) {
			first = t.wrote
		}
		if t.answered.After(last) {
			last = t.answered
		}
	}
	return first, last
}

func answers(all []sent) times {
	var t times
	for _, s := range all {
		t = append(t, s.answered.Sub(s.wrote))
	}
	return t
}

func writes(all []sent) []time.Time {
	var t []time.Time
	for _, s := range all {
		t = append(t, s.wrote)
	}
	return t
}
