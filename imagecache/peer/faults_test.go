// SPDX-License-Identifier: MIT

package peer

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/peer/token"
)

// impostor is a peer that misbehaves behind the right key.
func impostor(t *testing.T, name string, handler http.HandlerFunc) *host {
	t.Helper()
	h := newHost(t, name)
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{h.cfg.Identity.Certificate}, ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	t.Cleanup(s.Close)
	h.peer.Address = s.Listener.Addr().String()
	return h
}

// TestPeersThatFail counts on the bucket alone, and asks such a peer no more for a while.
func TestPeersThatFail(t *testing.T) {
	img := newImage(10, 60)
	garbage := func(n int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(n))
			_, _ = w.Write(make([]byte, n))
		}
	}
	hang := func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		limits  Limits
		log     string
		shunned bool
	}{
		"garbage":   {garbage(chunkBytes), ample, "sent what it should not", true},
		"too short": {garbage(chunkBytes - 1), ample, "sent what it should not", true},
		"too long":  {garbage(1 << 20), ample, "sent what it should not", true},
		"no length": {func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(make([]byte, chunkBytes))
		}, ample, "sent what it should not", true},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(chunkBytes))
			_, _ = w.Write([]byte("x"))
			panic(http.ErrAbortHandler)
		}, ample, "does not give chunks as hoped", false},
		"stalled":  {hang, Limits{Sign: 50 * time.Millisecond, Hold: patience, Whole: patience}, "did not answer in time", false},
		"for ever": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusProcessing); hang(w, r) }, Limits{Sign: 50 * time.Millisecond, Hold: 50 * time.Millisecond, Whole: patience}, "did not answer in time", false},
		"slow": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(chunkBytes))
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			hang(w, r)
		}, Limits{Sign: patience, Hold: patience, Whole: 50 * time.Millisecond}, "did not answer in time", false},
		"401": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401) }, ample, "it answered 401", false},
		"500": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) }, ample, "it answered 500", false},
		"elsewhere": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://127.0.0.1:1/", http.StatusFound)
		}, ample, "it answered 302", false},
		"endless head": {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) }, ample, "does not give chunks as hoped", false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			bad := impostor(t, "h-bad", func(w http.ResponseWriter, r *http.Request) { asked.Add(1); tc.handler(w, r) })
			a := newHost(t, "h-a", func(c *Config) { c.Limits = tc.limits; c.Limits.Aside = time.Hour })
			know(a, bad)
			source := &bucket{content: img.content}
			f, release := a.First(Pull{Manifest: img.manifest, Next: source})
			defer release()
			for i := range 10 {
				if got := a.fetch(f, img, i); got.Peer {
					t.Errorf("chunk %d came from the peer", i)
				}
			}
			hurried := tc.limits.Sign != patience // on a slow machine not even the question got there
			if n := asked.Load(); source.calls.Load() != 10 || n > 1 || n == 0 && !hurried {
				t.Errorf("the bucket was asked %d times and the peer %d: want 10 and 1", source.calls.Load(), n)
			}
			if log := a.log.String(); !strings.Contains(log, tc.log) {
				t.Errorf("log: %s", log)
			}
			o := a.others[bad.peer]
			if long := time.Until(o.aside) > 50*time.Minute; tc.shunned != long {
				t.Errorf("it is left alone until %s: shunned %t", o.aside, long)
			}
		})
	}
}

// TestPeersThatHaveNothing are asked less and less, and never left out for long.
func TestPeersThatHaveNothing(t *testing.T) {
	img := newImage(11, 60)
	for name, tc := range map[string]struct {
		status int
		most   int64
	}{"nothing": {404, manyLacks}, "busy": {503, 30}, "too much": {429, 30}, "not yet": {425, 60}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int64
			poor := impostor(t, "h-poor", func(w http.ResponseWriter, _ *http.Request) { asked.Add(1); w.WriteHeader(tc.status) })
			a := newHost(t, "h-a")
			know(a, poor)
			f, release := a.First(Pull{Manifest: img.manifest, Next: &bucket{content: img.content}})
			defer release()
			began := time.Now()
			for i := range 60 {
				a.fetch(f, img, i)
			}
			o := a.others[poor.peer]
			again := int64(time.Since(began) / busyFor) // on a slow machine
			if n := asked.Load(); n < 1 || n > tc.most+again || o.failures != 0 || !o.aside.IsZero() {
				t.Errorf("asked %d times, want up to %d; %d failures, aside until %s", n, tc.most, o.failures, o.aside)
			}
			if wait := time.Until(o.lacking); wait > lackMost {
				t.Errorf("it is not asked for %s", wait)
			}
		})
	}
}

func TestAnotherKeyIsNotThePeer(t *testing.T) {
	img := newImage(12, 3)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	b.serve()
	b.disk.putAll(img)
	terms := a.terms(b)
	terms.Peers[0].Pin = a.token(a.claims()).Hash() // of nobody's key
	a.Learn(terms)
	know(b)
	source := &bucket{content: img.content}
	f, release := a.First(Pull{Manifest: img.manifest, Next: source})
	defer release()
	a.fetch(f, img, 0)
	if log := a.log.String(); source.calls.Load() != 1 || !strings.Contains(log, "its key is not the one") {
		t.Errorf("%d calls to the bucket; log: %s", source.calls.Load(), log)
	}
}

// get asks a host as the other would, with a token of the test's.
func (h *host) get(from *host, path, bearer string) (status int, body string) {
	h.t.Helper()
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{from.cfg.Identity.Certificate}}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, "https://"+h.peer.Address+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	if bearer != "" {
		req.Header.Set("Authorization", "Bearer "+bearer)
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestTokensThatLetNobodyIn(t *testing.T) {
	img := newImage(13, 1)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	b.serve()
	b.disk.putAll(img)
	know(a, b)
	c, _ := img.chunk(0)
	path := pathChunks + c.Sum.String()
	claim := func(edit func(*token.Claims)) string {
		c := a.claims()
		edit(&c)
		return a.token(c).Reveal()
	}
	if status, body := b.get(a, path, claim(func(*token.Claims) {})); status != 200 || body != string(img.content[c.Sum]) {
		t.Fatalf("with a good token: %d", status)
	}
	foreign, err := token.Sign(ed25519.NewKeyFromSeed(make([]byte, 32)), a.claims())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct{ bearer, why string }{
		"none":                 {"", "missing"},
		"a word":               {"x", "form"},
		"another controller's": {foreign.Reveal(), "signed"},
		"expired":              {claim(func(c *token.Claims) { c.NotBefore -= 7200; c.Expires -= 7200 }), "expired"},
		"of tomorrow":          {claim(func(c *token.Claims) { c.NotBefore += 7200; c.Expires += 7200 }), "clocks"},
		"of another site":      {claim(func(c *token.Claims) { c.Site = "another" }), "another site"},
		"of another group":     {claim(func(c *token.Claims) { c.Group = "berlin" }), "another group"},
		"of another host":      {b.token(b.claims()).Reveal(), "another host"},
	} {
		if status, body := b.get(a, path, tc.bearer); status != 401 || !strings.Contains(body, tc.why) || tc.bearer != "" && strings.Contains(body, tc.bearer) {
			t.Errorf("%s: %d %s", name, status, body)
		}
	}
	good := claim(func(*token.Claims) {})
	for path, want := range map[string]int{
		pathChunks: 400, pathChunks + "zz": 400, pathChunks + c.Sum.String() + "00": 400, "/": 405,
		pathChunks + strings.Repeat("0", 64): 404, pathChunks + strings.Repeat("0", 64) + "?wait=long": 404,
	} {
		if status, body := b.get(a, path, good); status != want {
			t.Errorf("%s: %d %s, want %d", path, status, body, want)
		}
	}
}

// TestWhatRotsOnTheDiskStaysThere spoils a chunk on a disk.
func TestWhatRotsOnTheDiskStaysThere(t *testing.T) {
	img := newImage(14, 1)
	a, b := newHost(t, "h-a"), newHost(t, "h-b")
	b.serve()
	know(a, b)
	c, _ := img.chunk(0)
	b.disk.put(c.Sum, []byte("rot"))
	if status, body := b.get(a, pathChunks+c.Sum.String(), a.token(a.claims()).Reveal()); status != 404 {
		t.Errorf("%d %s", status, body)
	}
}

// TestOneHostCannotTakeAll holds its questions to a bound.
func TestOneHostCannotTakeAll(t *testing.T) {
	x := newHost(t, "h-a")
	for i := range maxVisits {
		if !x.enter("h-b") {
			t.Fatalf("question %d is refused", i)
		}
	}
	if x.enter("h-b") || !x.enter("h-c") {
		t.Error("a host that asks too much is let in, or another one is not")
	}
	x.leave("h-b")
	if !x.enter("h-b") {
		t.Error("a place that was given back is lost")
	}
	for i := range 20 * maxPeers {
		name := "h-" + strconv.Itoa(i)
		if x.enter(name) {
			x.leave(name)
		}
	}
	if n := len(x.visits); n > 10*maxPeers {
		t.Errorf("%d hosts are remembered", n)
	}
	for i, on := 0, true; on; i++ {
		if on = x.enter("h-q"); on {
			x.leave("h-q")
		} else if i < visitsSecond/2 {
			t.Errorf("question %d in a row is refused", i)
		}
	}
}

// TestReadersAreBounded keeps all readers busy: who comes then is told so, and the disk sees
// no more of it.
func TestReadersAreBounded(t *testing.T) {
	hold := make(chan struct{})
	slow := &slowDisk{hold: hold, begun: make(chan struct{}, 10)}
	a, b := newHost(t, "h-a"), newHost(t, "h-b", func(c *Config) { c.Chunks, c.Readers, c.Limits.Queue = slow, 2, soon })
	b.serve()
	know(a, b)
	for range 2 {
		go func() { _, _ = b.fromDisk(t.Context(), manifest.Sum{1}, &share{of: b.given}) }()
		<-slow.begun
	}
	if status, body := b.get(a, pathChunks+strings.Repeat("0", 64), a.token(a.claims()).Reveal()); status != 503 {
		t.Errorf("%d %s", status, body)
	}
	if len(slow.begun) != 0 {
		t.Error("a third reader is at work")
	}
	close(hold)
}

const soon = 50 * time.Millisecond

// TestGivenMemoryIsBounded asks a host that holds in memory for others all that it may.
func TestGivenMemoryIsBounded(t *testing.T) {
	img := newImage(8, 3)
	a, b := newHost(t, "h-a"), newHost(t, "h-b", func(c *Config) { c.GivenBytes = 1 })
	b.serve()
	know(a, b)
	ask := func(i int, query string) int {
		c, _ := img.chunk(i)
		status, _ := b.get(a, pathChunks+c.Sum.String()+query, a.token(a.claims()).Reveal())
		return status
	}
	c, size := img.chunk(0)
	b.disk.put(c.Sum, img.content[c.Sum])
	others := &share{of: b.given}
	if err := others.take(t.Context(), manifest.MaxChunkBytes-size+1); err != nil { // the least that it holds is one of the largest
		t.Fatal(err)
	}
	b.cfg.Limits.Queue = soon // for nothing else: a busy machine takes longer for what it can do
	if status := ask(0, ""); status != http.StatusServiceUnavailable {
		t.Errorf("a chunk of the disk, without memory for it: %d", status)
	}
	b.cfg.Limits.Queue = patience
	others.release()
	for range 20 { // far more than fit at once: none keeps its share
		if status := ask(0, ""); status != http.StatusOK {
			t.Fatalf("a chunk of the disk: %d", status)
		}
	}
	// What it fetches for another counts as what it fetches for itself.
	memory := assemble.NewMemory(2 * size)
	source := &bucket{content: img.content}
	_, release := b.First(Pull{Manifest: img.manifest, Next: source, Memory: memory})
	defer release()
	give, err := memory.Hold(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	b.cfg.Limits.Hold = soon
	if status := ask(1, "?"+queryWait+"="+waitLong); status != http.StatusTooEarly || source.calls.Load() != 0 {
		t.Errorf("a chunk that it needs too, without memory for it: %d, %d calls to the bucket", status, source.calls.Load())
	}
	b.cfg.Limits.Hold = patience
	give()
	if status := ask(2, "?"+queryWait+"="+waitLong); status != http.StatusOK {
		t.Errorf("a chunk that it needs too: %d", status)
	}
}

type slowDisk struct {
	hold, begun chan struct{}
}

func (s *slowDisk) OpenChunk(context.Context, manifest.Sum, func(int64) ([]byte, error)) ([]byte, error) {
	s.begun <- struct{}{}
	<-s.hold
	return nil, io.EOF
}

// TestConnectionsAreBounded opens more than there may be.
func TestConnectionsAreBounded(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0", loopback, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, maxConns+1)
	go func() {
		defer close(accepted)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	defer func() {
		l.Close()
		for c := range accepted {
			c.Close()
		}
	}()
	dial := func() net.Conn {
		c, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for range maxConns {
		dial()
	}
	beyond := dial()
	if err := beyond.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := beyond.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("one connection more than there may be: %v", err)
	}
	if n := len(accepted); n != maxConns {
		t.Errorf("%d connections are served, want %d", n, maxConns)
	}
	(<-accepted).Close() // which makes room for one
	dial()
	for range maxConns {
		select {
		case c := <-accepted:
			c.Close()
		case <-time.After(patience):
			t.Fatal("a connection that ended has left no room")
		}
	}
}
