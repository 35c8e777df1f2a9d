// SPDX-License-Identifier: MIT

package webhook_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-chi/chi/v5"

	"github.com/minifleet/minifleet/fleet"
	"github.com/minifleet/minifleet/secret"
	"github.com/minifleet/minifleet/webhook"
)

// raw sends bytes as they are and returns the answer's status.
func raw(t *testing.T, address string, write func(io.Writer)) int {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	var wg sync.WaitGroup
	wg.Go(func() { write(conn) }) // fails once the server has closed: that is its right
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	conn.Close()
	wg.Wait()
	return resp.StatusCode
}

func TestOversizedIsRefusedUnread(t *testing.T) {
	r := newRig(t)
	signature := sign(key, nil)
	// Not one byte of the body is sent: an answer shows that none was waited for.
	code := raw(t, r.url, func(w io.Writer) {
		fmt.Fprintf(w, "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\nContent-Length: %d\r\n\r\n", signature, webhook.MaxBody+1)
	})
	if code != http.StatusRequestEntityTooLarge || r.store.ingests != 0 {
		t.Errorf("answer %d", code)
	}
}

// inTime asks again what a busy machine has not read or stored in GitHub's time.
func inTime(ask func() (code int)) (code int) {
	for range 10 {
		if code = ask(); code != http.StatusRequestTimeout && code != http.StatusServiceUnavailable {
			break
		}
	}
	return code
}

func TestOversizedInChunks(t *testing.T) {
	r := newRig(t)
	signature := sign(key, nil)
	code := inTime(func() int {
		return raw(t, r.url, func(w io.Writer) {
			fmt.Fprintf(w, "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\nTransfer-Encoding: chunked\r\n\r\n", signature)
			chunk := "100000\r\n" + strings.Repeat("x", 1<<20) + "\r\n"
			for range webhook.MaxBody>>20 + 1 {
				if _, err := io.WriteString(w, chunk); err != nil {
					return
				}
			}
			io.WriteString(w, "0\r\n\r\n")
		})
	})
	if code != http.StatusRequestEntityTooLarge || r.store.ingests != 0 {
		t.Errorf("answer %d", code)
	}
}

func TestLargestBodyIsTaken(t *testing.T) {
	r := newRig(t)
	body := fixture(t, "job_queued")
	body = append(body, strings.Repeat(" ", webhook.MaxBody-len(body))...)
	var got reply
	inTime(func() int {
		got = send(t, request(t, r.url, "workflow_job", guid, body))
		return got.code
	})
	if got.Status != fleet.DeliveryProcessed {
		t.Errorf("answer %d %s", got.code, got.text)
	}
}

func TestTruncatedBodyIsNotStored(t *testing.T) {
	r := newRig(t)
	code := raw(t, r.url, func(w io.Writer) {
		fmt.Fprintf(w, "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\nContent-Length: 10\r\n\r\n{}", sign(key, []byte("{}")))
		w.(*net.TCPConn).CloseWrite()
	})
	if code != http.StatusBadRequest || r.store.ingests != 0 {
		t.Errorf("answer %d", code)
	}
}

// A few senders of large bodies that never end must not use up the memory.
func TestLargeBodiesAreRationed(t *testing.T) {
	r := newRig(t)
	large := []byte(strings.Repeat(" ", 2<<20))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var hanging sync.WaitGroup
	refused := make(chan struct{})
	var once sync.Once
	// hold sends a body that does not end, and returns the answer; 0 is none.
	hold := func() int {
		body, feed := io.Pipe()
		answered, answer := context.WithCancel(ctx)
		defer answer()
		hanging.Go(func() {
			defer feed.Close()
			feed.Write(large)
			<-answered.Done()
		})
		defer body.Close()
		req := request(t, r.url, "workflow_job", guid, nil).WithContext(ctx)
		req.Body, req.ContentLength = body, -1
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for range 9 {
		hanging.Go(func() {
			for ctx.Err() == nil { // the first may have timed out before the ninth comes
				if hold() == http.StatusServiceUnavailable {
					once.Do(func() { close(refused) })
					return
				}
			}
		})
	}
	<-refused // the ninth
	if got := send(t, request(t, r.url, "workflow_job", guid, fixture(t, "job_queued"))); got.Status != fleet.DeliveryProcessed {
		t.Errorf("a delivery of usual size: %d %s", got.code, got.text)
	}
	cancel()
	hanging.Wait()
	http.DefaultClient.CloseIdleConnections()
}

// The time limits run on a false clock over an in-memory network.
func TestTimeLimits(t *testing.T) {
	t.Run("slow body", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			store := newMemory()
			client := inMemory(t, store)
			begun := time.Now()
			fmt.Fprintf(client, "POST /webhook HTTP/1.1\r\nHost: x\r\nX-Hub-Signature-256: %s\r\nContent-Length: 10\r\n\r\n{", sign(key, nil))
			resp, err := http.ReadResponse(bufio.NewReader(client), nil)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if took := time.Since(begun); resp.StatusCode != http.StatusRequestTimeout || took < 9*time.Second || took > 11*time.Second || store.ingests != 0 {
				t.Errorf("answer %d after %s", resp.StatusCode, took)
			}
		})
	})
	t.Run("slow store", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			client := inMemory(t, hangingStore{})
			body := fixture(t, "job_queued")
			begun := time.Now()
			req := request(t, "http://x/webhook", "workflow_job", guid, body)
			if err := req.Write(client); err != nil {
				t.Fatal(err)
			}
			resp, err := http.ReadResponse(bufio.NewReader(client), req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if took := time.Since(begun); resp.StatusCode != http.StatusServiceUnavailable || took >= 10*time.Second {
				t.Errorf("answer %d after %s: GitHub waits 10 s", resp.StatusCode, took)
			}
		})
	})
}

// A sender that hangs up does not undo what is being stored.
func TestSenderGone(t *testing.T) {
	store := gatedStore{memory: newMemory(), entered: make(chan struct{}), gone: make(chan struct{}), done: make(chan error, 1)}
	h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	hangUp := make(chan struct{})
	router.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			context.AfterFunc(r.Context(), func() { close(hangUp) })
			next.ServeHTTP(w, r)
		})
	})
	h.Routes(router)
	server := httptest.NewServer(router)
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	req := request(t, server.URL+"/webhook", "workflow_job", guid, fixture(t, "job_queued")).WithContext(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
		}
	})
	<-store.entered
	cancel()
	<-hangUp // the server has noticed
	close(store.gone)
	if err := <-store.done; err != nil {
		t.Errorf("storing ended with %v", err)
	}
	wg.Wait()
}

type gatedStore struct {
	*memory
	entered, gone chan struct{}
	done          chan error
}

func (g gatedStore) Ingest(ctx context.Context, in fleet.Ingest) (fleet.Ingested, error) {
	close(g.entered)
	<-g.gone
	out, err := g.memory.Ingest(ctx, in)
	g.done <- err
	return out, err
}

type hangingStore struct{}

func (hangingStore) Ingest(ctx context.Context, _ fleet.Ingest) (fleet.Ingested, error) {
	<-ctx.Done()
	return fleet.Ingested{}, ctx.Err()
}

func (hangingStore) KnownInstallation(context.Context, int64) (bool, error) { return true, nil }

// inMemory serves a webhook on one end of a pipe and returns the other.
func inMemory(t *testing.T, store webhook.Store) net.Conn {
	t.Helper()
	h, err := webhook.New(webhook.Config{Secrets: []secret.Text{secret.New(key)}, AppID: appID, Store: store})
	if err != nil {
		t.Fatal(err)
	}
	router := chi.NewRouter()
	h.Routes(router)
	client, server := net.Pipe()
	listener := &oneConn{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	listener.conns <- server
	srv := &http.Server{Handler: router}
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(listener) })
	t.Cleanup(func() {
		client.Close()
		srv.Close()
		wg.Wait()
	})
	return client
}

type oneConn struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *oneConn) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *oneConn) Addr() net.Addr { return &net.TCPAddr{} }
