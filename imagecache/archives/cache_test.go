// SPDX-License-Identifier: MIT

package archives_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/minifleet/minifleet/imagecache/archives"
	"github.com/minifleet/minifleet/internal/leakcheck"
)

func TestMain(m *testing.M) { leakcheck.Main(m) }

// content is an archive of n bytes, of a kind.
func content(kind byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7) ^ byte(i>>9) ^ kind
	}
	return b
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// server serves through TLS what its handler says, and counts.
type server struct {
	*httptest.Server
	asked  atomic.Int64
	ranges chan string // what was asked for, of each request
}

func serve(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{ranges: make(chan string, 100)}
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.asked.Add(1)
		s.ranges <- r.Header.Get("Range")
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

// whole serves all of b, and ranges of it.
func whole(b []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}
}

func open(t *testing.T, dir string, s *server, edit func(*archives.Config)) *archives.Cache {
	t.Helper()
	cfg := archives.Config{Dir: dir, Pause: time.Millisecond}
	if s != nil {
		cfg.Transport = s.Client().Transport
	}
	if edit != nil {
		edit(&cfg)
	}
	c, err := archives.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// want fetches and checks that it is b.
func want(t *testing.T, c *archives.Cache, url string, b []byte) *archives.Archive {
	t.Helper()
	a, err := c.Ensure(t.Context(), archives.Ref{URL: url, SHA256: strings.ToUpper(digestOf(b))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Release)
	f, err := a.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || !bytes.Equal(got, b) || a.Size != int64(len(b)) || a.SHA256 != digestOf(b) {
		t.Fatalf("%d bytes of %d, %v", len(got), len(b), err)
	}
	return a
}

// refused fetches in vain, and returns the error's words.
func refused(t *testing.T, c *archives.Cache, url string, b []byte) error {
	t.Helper()
	a, err := c.Ensure(t.Context(), archives.Ref{URL: url, SHA256: digestOf(b)}, nil)
	if err == nil {
		a.Release()
		t.Fatal("it was given out")
	}
	return err
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFetchedOnce(t *testing.T) {
	t.Parallel()
	b := content(1, 3<<20)
	s := serve(t, whole(b))
	dir := t.TempDir()
	c := open(t, dir, s, nil)
	var last archives.Progress
	a, err := c.Ensure(t.Context(), archives.Ref{URL: s.URL + "/runner.tar.gz?token=hunter2", SHA256: digestOf(b)}, func(p archives.Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	a.Release()
	a.Release() // counts once
	if last.TotalBytes != int64(len(b)) || last.DoneBytes == 0 {
		t.Errorf("progress ended with %+v", last)
	}
	want(t, c, s.URL, b)
	want(t, open(t, dir, s, nil), s.URL, b) // of the next process
	if n := s.asked.Load(); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
	if got := files(t, dir); !slices.Equal(got, []string{digestOf(b) + ".tar.gz"}) {
		t.Errorf("the folder has %v", got)
	}
}

func TestOneFetchForAll(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<20)
	goOn := make(chan struct{})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:1])
		w.(http.Flusher).Flush()
		select {
		case <-goOn:
		case <-r.Context().Done():
		}
		w.Write(b[1:])
	})
	c := open(t, t.TempDir(), s, nil)
	ref := archives.Ref{URL: s.URL, SHA256: digestOf(b)}
	// The one that began it leaves: the others want it still.
	first, leave := context.WithCancel(t.Context())
	var all sync.WaitGroup
	joined := make(chan struct{}, 21)
	progress := func() func(archives.Progress) { // each is told
		var once sync.Once
		return func(archives.Progress) { once.Do(func() { joined <- struct{}{} }) }
	}
	gone := make(chan struct{})
	all.Go(func() {
		defer close(gone)
		if _, err := c.Ensure(first, ref, progress()); !errors.Is(err, context.Canceled) {
			t.Errorf("the first: %v", err)
		}
	})
	<-joined
	for range 20 {
		all.Go(func() {
			a, err := c.Ensure(t.Context(), ref, progress())
			if err != nil {
				t.Error(err)
				return
			}
			a.Release()
		})
	}
	for range 20 {
		<-joined
	}
	leave()
	<-gone
	close(goOn)
	all.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("it was fetched %d times", n)
	}
}

func TestCalledOff(t *testing.T) {
	t.Parallel()
	b := content(1, 2<<20)
	begun := make(chan struct{}, 1)
	hold := true
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if !hold {
			whole(b)(w, r)
			return
		}
		hold = false
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:1<<20])
		w.(http.Flusher).Flush()
		begun <- struct{}{}
		<-r.Context().Done() // that is the hang-up
	})
	dir := t.TempDir()
	c := open(t, dir, s, nil)
	ctx, cancel := context.WithCancelCause(t.Context())
	off := errors.New("called off")
	_, err := c.Ensure(ctx, archives.Ref{URL: s.URL, SHA256: digestOf(b)}, func(p archives.Progress) {
		if p.DoneBytes >= 1<<20 {
			cancel(off)
		}
	})
	if !errors.Is(err, off) {
		t.Fatal(err)
	}
	if got := files(t, dir); !slices.Equal(got, []string{digestOf(b) + ".part"}) {
		t.Errorf("the folder has %v", got)
	}
	// The next goes on with what is there, and so does one after a crash.
	want(t, open(t, dir, s, nil), s.URL, b)
	<-s.ranges
	if got := <-s.ranges; got != fmt.Sprintf("bytes=%d-", 1<<20) {
		t.Errorf("the next asked for %q", got)
	}
}

func TestCutConnection(t *testing.T) {
	t.Parallel()
	b := content(1, 5<<20)
	cuts := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if cuts++; cuts > 4 {
			whole(b)(w, r)
			return
		}
		var from int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
		if from > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
			w.WriteHeader(http.StatusPartialContent)
		}
		w.Write(b[from : from+1<<20])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	want(t, open(t, t.TempDir(), s, nil), s.URL, b)
	if n := s.asked.Load(); n != 5 {
		t.Errorf("%d requests", n)
	}
}

func TestTheServerFails(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<10)
	for name, c := range map[string]struct {
		h     http.HandlerFunc
		words string
		asked int64
	}{
		"for ever":   {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "the server answers 503", 4},
		"not there":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) }, "correct the pool's runner.url", 1},
		"wrong":      {whole([]byte("something else")), "correct the pool's runner", 1},
		"too large":  {whole(make([]byte, 2<<20)), "larger than 1 MiB", 1},
		"part of it": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(206) }, "Content-Range", 1},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "larger than 1 MiB", 1},
		"redirect to http": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+"/secret?token=hunter2", http.StatusFound)
		}, "only https is followed", 1},
		"redirect to a file": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		}, "only https is followed", 1},
		"redirects for ever": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path+"x?token=hunter2", http.StatusFound)
		}, "more than 10", 10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, c.h)
			dir := t.TempDir()
			err := refused(t, open(t, dir, s, func(cfg *archives.Config) { cfg.MaxBytes = 1 << 20 }), s.URL+"/a", b)
			if !strings.Contains(err.Error(), c.words) || strings.Contains(err.Error(), "hunter2") || s.asked.Load() != c.asked {
				t.Errorf("after %d requests: %v", s.asked.Load(), err)
			}
			for _, name := range files(t, dir) {
				if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() > 0 {
					t.Errorf("%s is left, %v", name, err)
				}
			}
		})
	}
}

func TestASilentServerIsGivenUp(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<10)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(b)))
		w.Write(b[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	err := refused(t, open(t, t.TempDir(), s, func(cfg *archives.Config) { cfg.Stall = 10 * time.Millisecond }), s.URL, b)
	if !strings.Contains(err.Error(), "sent nothing for 10ms") {
		t.Error(err)
	}
}

func TestHTTPSRedirectIsFollowed(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<10)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/" {
			http.Redirect(w, r, "/there", http.StatusFound)
			return
		}
		whole(b)(w, r)
	})
	want(t, open(t, t.TempDir(), s, nil), s.URL+"/", b)
}

func TestACertificateThatIsNotTrusted(t *testing.T) {
	t.Parallel()
	s := serve(t, whole(nil))
	s.Config.ErrorLog = nil
	if err := refused(t, open(t, t.TempDir(), nil, nil), s.URL, nil); !strings.Contains(err.Error(), "not trusted") {
		t.Error(err)
	}
}

// What a crash, a disk or an older file behind the same URL has left is gone on with, and
// dropped where that does not lead to what is wanted.
func TestAPartOfAnotherTime(t *testing.T) {
	t.Parallel()
	b := content(1, 2<<20)
	for name, part := range map[string][]byte{
		"a beginning":       b[:1<<20],
		"all of it":         b,
		"more than that":    content(1, 3<<20),
		"something else":    content(2, 1<<20),
		"zeros at the end":  append(slices.Clone(b[:1<<20]), make([]byte, 100)...),
		"nothing":           {},
		"an archive's size": content(2, 2<<20),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, whole(b))
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, digestOf(b)+".part"), part, 0o600); err != nil {
				t.Fatal(err)
			}
			want(t, open(t, dir, s, nil), s.URL, b)
		})
	}
}

func TestASpoiltArchiveIsFetchedAnew(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<20)
	s := serve(t, whole(b))
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, digestOf(b)+".tar.gz"), b[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	want(t, open(t, dir, s, nil), s.URL, b)
}

// fullAfter is a volume with room for n bytes more.
type fullAfter struct {
	w io.Writer
	n int
}

func (f *fullAfter) Write(p []byte) (int, error) {
	if f.n -= len(p); f.n < 0 {
		return 0, &os.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	return f.w.Write(p)
}

func TestAFullVolume(t *testing.T) {
	t.Parallel()
	b := content(1, 1<<20)
	s := serve(t, whole(b))
	dir := t.TempDir()
	c := open(t, dir, s, nil)
	c.WriteThrough(func(w io.Writer) io.Writer { return &fullAfter{w, 1 << 19} })
	err := refused(t, c, s.URL, b)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "free some space") {
		t.Error(err)
	}
	if got := files(t, dir); len(got) != 0 {
		t.Errorf("it takes room still: %v", got)
	}
	c.WriteThrough(func(w io.Writer) io.Writer { return w })
	want(t, c, s.URL, b)
}

func TestThoseUsedLastAreKept(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := map[string][]byte{}
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { whole(at[r.URL.Path])(w, r) })
	c := open(t, dir, s, func(cfg *archives.Config) { cfg.Keep = 2 })
	old := time.Now().Add(-time.Hour)
	var held *archives.Archive
	for i := range byte(5) {
		path := fmt.Sprintf("/%d", i)
		at[path] = content(i, 1000)
		a, err := c.Ensure(t.Context(), archives.Ref{URL: s.URL + path, SHA256: digestOf(at[path])}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			held = a
		} else {
			a.Release()
		}
		when := old.Add(time.Duration(i) * time.Second)
		if err := os.Chtimes(filepath.Join(dir, a.SHA256+".tar.gz"), when, when); err != nil {
			t.Fatal(err)
		}
	}
	check := func(kinds ...byte) {
		t.Helper()
		var names []string
		for _, k := range kinds {
			names = append(names, digestOf(content(k, 1000))+".tar.gz")
		}
		slices.Sort(names)
		if got := files(t, dir); !slices.Equal(got, names) {
			t.Errorf("there are %d: %v", len(got), got)
		}
	}
	check(0, 2, 3, 4) // the first is held, the last came just now
	held.Release()
	want(t, c, s.URL+"/4", at["/4"])
	check(2, 3, 4)
}

func TestAFile(t *testing.T) {
	t.Parallel()
	b := content(1, 2<<20)
	path := filepath.Join(t.TempDir(), "runner.tar.gz")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	want(t, open(t, dir, nil, nil), "file://"+path, b)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	want(t, open(t, dir, nil, nil), "file://"+path, b)
	other := content(2, 10)
	for where, words := range map[string]string{path: "no such file", filepath.Dir(path): "not a file"} {
		if err := refused(t, open(t, t.TempDir(), nil, nil), "file://"+where, other); !strings.Contains(err.Error(), words) {
			t.Error(err)
		}
	}
}

func TestReferences(t *testing.T) {
	t.Parallel()
	c := open(t, t.TempDir(), nil, nil)
	good := strings.Repeat("a", 64)
	for _, ref := range []archives.Ref{
		{URL: "http://example.com/a", SHA256: good},
		{URL: "ftp://example.com/a", SHA256: good},
		{URL: "https:///a", SHA256: good},
		{URL: "https://me:hunter2@example.com/a", SHA256: good},
		{URL: "file://elsewhere/a", SHA256: good},
		{URL: "file:a", SHA256: good},
		{URL: "", SHA256: good},
		{URL: "https://example.com/a", SHA256: ""},
		{URL: "https://example.com/a", SHA256: "../" + good[3:]},
		{URL: "https://example.com/a", SHA256: good + "a"},
	} {
		_, err := c.Ensure(t.Context(), ref, nil)
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%+v: %v", ref, err)
		}
	}
	for _, cfg := range []archives.Config{{Dir: "here"}, {Dir: "/x", Keep: -1}} {
		if _, err := archives.Open(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}

// FuzzContentRange finds a server's words that lead to sizes that cannot be.
func FuzzContentRange(f *testing.F) {
	for _, text := range []string{"bytes 0-9/10", "bytes 5-9/*", "bytes */10", "bytes 9-0/10", "bytes 0-9/9223372036854775807", "", "bytes -1-2/3"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		from, total, err := archives.ParseContentRange(text)
		if err == nil && (from < 0 || total < 0 || total > 0 && from >= total) {
			t.Errorf("%q: from %d of %d", text, from, total)
		}
		if err != nil && len(err.Error()) > 600 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}

// FuzzRef finds a reference of a controller that leads out of the folder.
func FuzzRef(f *testing.F) {
	f.Add("https://example.com/a.tar.gz", strings.Repeat("a", 64))
	f.Add("file:///a", strings.Repeat("/", 64))
	f.Fuzz(func(t *testing.T, url, sum string) {
		digest, err := archives.Ref{URL: url, SHA256: sum}.Parse()
		if err == nil && (len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "") {
			t.Errorf("digest %q", digest)
		}
	})
}
