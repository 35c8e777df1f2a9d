// SPDX-License-Identifier: MIT

package objects_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/objects/objectstest"
)

// site is a bucket behind connections in memory, so that time is the test's.
type site struct {
	*objectstest.Server
	store objects.Store

	mu   sync.Mutex
	seen []string // what was asked
}

// asked is what the store has asked for so far.
func (s *site) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

type fault func(w http.ResponseWriter, r *http.Request, answer http.Handler)

// within runs a test with a store whose other end misbehaves.
func within(t *testing.T, f fault, test func(t *testing.T, s *site)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &site{Server: &objectstest.Server{Bucket: "images"}}
		conns := make(chan net.Conn)
		done := make(chan struct{})
		base, release := context.WithCancel(t.Context()) // who was left waiting
		server := &http.Server{BaseContext: func(net.Listener) context.Context { return base }, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			s.mu.Lock()
			s.seen = append(s.seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
			s.mu.Unlock()
			s.ServeHTTP(w, r)
		})}
		go func() {
			defer close(done)
			server.Serve(&listener{conns: conns, closed: make(chan struct{})})
		}()
		o := objects.Options{Scheme: "gs", Location: "images/ci", Endpoint: "http://bucket.test"}
		store, err := objects.Open(t.Context(), o.WithDial(func(ctx context.Context, _, _ string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			select {
			case conns <- theirs:
				return ours, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}))
		if err != nil {
			t.Fatal(err)
		}
		s.store = store
		if _, err := store.Put(t.Context(), "there", content, objects.Condition{}); err != nil {
			t.Fatal(err)
		}
		s.Fault, s.seen = f, nil
		defer func() {
			if err := store.Close(); err != nil {
				t.Error(err)
			}
			release()
			server.Close()
			<-done
		}()
		test(t, s)
	})
}

type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *listener) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }

var content = bytes.Repeat([]byte("some content "), 50_000) // more than any buffer holds

// times makes the first n requests go wrong.
func times(n int, f fault) fault {
	var mu sync.Mutex
	return func(w http.ResponseWriter, r *http.Request, answer http.Handler) {
		mu.Lock()
		n--
		bad := n >= 0
		mu.Unlock()
		if !bad {
			answer.ServeHTTP(w, r)
			return
		}
		f(w, r, answer)
	}
}

func status(code int, header ...string) fault {
	return func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
		io.Copy(io.Discard, r.Body)
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		objectstest.Refuse(w, code, "reason", "the server's words")
	}
}

// stall answers nothing until the other side gives up.
func stall(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() }

func cut(http.ResponseWriter, *http.Request, http.Handler) { panic(http.ErrAbortHandler) }

// lost carries the request out, and then nobody hears of it.
func lost(_ http.ResponseWriter, r *http.Request, answer http.Handler) {
	answer.ServeHTTP(&nowhere{header: http.Header{}}, r)
	panic(http.ErrAbortHandler)
}

type nowhere struct{ header http.Header }

func (n *nowhere) Header() http.Header         { return n.header }
func (n *nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n *nowhere) WriteHeader(int)             {}

// part sends some bytes of the answer's body, and then does what then does.
func part(n int, then func(r *http.Request)) fault {
	return func(w http.ResponseWriter, r *http.Request, answer http.Handler) {
		answer.ServeHTTP(&limited{ResponseWriter: w, left: n}, r)
		w.(http.Flusher).Flush()
		then(r)
	}
}

type limited struct {
	http.ResponseWriter
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	n := min(len(b), l.left)
	l.left -= n
	l.ResponseWriter.Write(b[:n])
	return len(b), nil
}

func abort(*http.Request)  { panic(http.ErrAbortHandler) }
func wait(r *http.Request) { <-r.Context().Done() }
func read(s *site) ([]byte, error) {
	r, _, err := s.store.Get(context.Background(), "there")
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// calls are all methods, on an object that is there.
func calls(ctx context.Context, s objects.Store) map[string]func() error {
	return map[string]func() error{
		"get": func() error {
			r, _, err := s.Get(ctx, "there")
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = io.Copy(io.Discard, r)
			return err
		},
		"stat":   func() error { _, err := s.Stat(ctx, "there"); return err },
		"put":    func() error { _, err := s.Put(ctx, "there", content, objects.Condition{}); return err },
		"touch":  func() error { _, err := s.Touch(ctx, "there", objects.Condition{}); return err },
		"delete": func() error { return s.Delete(ctx, "there", objects.Condition{}) },
		"list": func() error {
			for _, err := range s.List(ctx, "") {
				return err
			}
			return nil
		},
	}
}

// TestWorthAnotherTry: what passes is survived by every call.
func TestWorthAnotherTry(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{
		"408": status(408), "429": status(429), "500": status(500), "502": status(502), "503": status(503), "504": status(504),
		"stall": stall, "cut": cut,
		"403 of the rate": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			objectstest.Refuse(w, 403, "rateLimitExceeded", "slow down")
		},
		"no JSON": func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(502)
			io.WriteString(w, "<html>a proxy</html>")
		},
	} {
		for call := range calls(t.Context(), nil) {
			t.Run(name+"/"+call, func(t *testing.T) {
				within(t, times(2, f), func(t *testing.T, s *site) {
					if err := calls(t.Context(), s.store)[call](); err != nil {
						t.Error(err)
					}
					if len(s.asked()) != 3 {
						t.Errorf("it asked %q", s.asked())
					}
				})
			})
		}
	}
}

// TestFinal: what stays as it is is asked once, and said with what to do.
func TestFinal(t *testing.T) {
	t.Parallel()
	role := map[string]string{"get": "roles/storage.objectViewer", "stat": "roles/storage.objectViewer", "list": "storage.objects.list", "put": "roles/storage.objectUser", "touch": "storage.objects.update", "delete": "storage.objects.delete"}
	for call := range calls(t.Context(), nil) {
		for name, test := range map[string]struct {
			f    fault
			is   error
			want []string
		}{
			"403": {status(403), objects.ErrForbidden, []string{"the server's words", "bucket images", role[call], "gs://images/ci"}},
			"401": {status(401), objects.ErrForbidden, []string{"gcloud auth application-default login"}},
			"412": {status(412), objects.ErrPrecondition, []string{"gs://images/ci"}},
			"400": {status(400), nil, []string{"the server's words"}},
			"302": {status(302, "Location", "http://elsewhere/"), nil, []string{"endpoint"}},
			"no such bucket": {func(w http.ResponseWriter, r *http.Request, _ http.Handler) {
				io.Copy(io.Discard, r.Body)
				objectstest.Refuse(w, 404, "notFound", "The specified bucket does not exist.")
			}, objects.ErrNotFound, []string{"there is no bucket images", "make the bucket"}},
			"a pause too long": {status(503, "Retry-After", "3600"), nil, []string{"1h0m0s", "try again"}},
		} {
			t.Run(name+"/"+call, func(t *testing.T) {
				within(t, test.f, func(t *testing.T, s *site) {
					began := time.Now()
					err := calls(t.Context(), s.store)[call]()
					if err == nil || test.is != nil && !errors.Is(err, test.is) {
						t.Fatalf("%v: want %v", err, test.is)
					}
					for _, want := range test.want {
						if !strings.Contains(err.Error(), want) {
							t.Errorf("%v: want %q in it", err, want)
						}
					}
					if strings.ContainsAny(err.Error(), "\n") || len(err.Error()) > 2000 {
						t.Errorf("%q is no line", err)
					}
					if len(s.asked()) != 1 || time.Since(began) != 0 {
						t.Errorf("it asked %q and took %s", s.asked(), time.Since(began))
					}
				})
			})
		}
	}
}

func TestGivesUp(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{"503": status(503), "stall": stall, "cut": cut, "stall in the middle": part(0, wait)} {
		for call := range calls(t.Context(), nil) {
			if call == "delete" && name == "stall in the middle" {
				continue // its answer has no body
			}
			t.Run(name+"/"+call, func(t *testing.T) {
				within(t, f, func(t *testing.T, s *site) {
					began := time.Now()
					err := calls(t.Context(), s.store)[call]()
					if err == nil || !strings.Contains(err.Error(), "given up after") {
						t.Fatal(err)
					}
					if took := time.Since(began); took > 3*time.Minute || len(s.asked()) < 3 || len(s.asked()) > 100 {
						t.Errorf("it took %s and asked %d times", took, len(s.asked()))
					}
				})
			})
		}
	}
}

// TestCalledOff: the context ends a call at once, whatever it waits for.
func TestCalledOff(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]fault{"503": status(503), "stall": stall, "stall in the middle": part(0, wait)} {
		for call := range calls(t.Context(), nil) {
			if call == "delete" && name == "stall in the middle" {
				continue // its answer has no body
			}
			t.Run(name+"/"+call, func(t *testing.T) {
				within(t, f, func(t *testing.T, s *site) {
					why := errors.New("enough")
					ctx, cancel := context.WithCancelCause(t.Context())
					at := 20 * time.Second
					defer time.AfterFunc(at, func() { cancel(why) }).Stop()
					began := time.Now()
					err := calls(ctx, s.store)[call]()
					if !errors.Is(err, why) || time.Since(began) != at {
						t.Errorf("after %s: %v", time.Since(began), err)
					}
				})
			})
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	moment := time.Date(2000, 1, 1, 0, 1, 0, 0, time.UTC)
	for name, header := range map[string][]string{
		"seconds": {"Retry-After", "40"},
		"moment":  {"Retry-After", moment.Add(40 * time.Second).Format(http.TimeFormat), "Date", moment.Format(http.TimeFormat)},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, times(1, status(429, header...)), func(t *testing.T, s *site) {
				began := time.Now()
				if _, err := s.store.Stat(t.Context(), "there"); err != nil {
					t.Error(err)
				}
				if took := time.Since(began); took < 40*time.Second || took > time.Minute {
					t.Errorf("it waited %s", took)
				}
			})
		})
	}
}

// TestGoesOn: reading goes on where it stopped, of the same generation.
func TestGoesOn(t *testing.T) {
	t.Parallel()
	for name, then := range map[string]func(*http.Request){"cut": abort, "stall": wait} {
		t.Run(name, func(t *testing.T) {
			within(t, times(3, part(100_000, then)), func(t *testing.T, s *site) {
				b, err := read(s)
				if err != nil || !bytes.Equal(b, content) {
					t.Errorf("%d bytes, %v", len(b), err)
				}
				want := []string{"", "bytes=100000-", "bytes=200000-", "bytes=300000-"}
				for i, w := range want {
					if i >= len(s.asked()) || !strings.HasSuffix(s.asked()[i], " "+w) {
						t.Fatalf("it asked %q, want %q", s.asked(), want)
					}
				}
			})
		})
	}
	t.Run("and on", func(t *testing.T) { // patience is for what does not move
		within(t, part(10_000, wait), func(t *testing.T, s *site) {
			b, err := read(s)
			if err != nil || !bytes.Equal(b, content) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if len(s.asked()) != 65 {
				t.Errorf("it asked %d times", len(s.asked()))
			}
		})
	})
}

// TestSlowUser: it is no stall that nobody reads.
func TestSlowUser(t *testing.T) {
	within(t, nil, func(t *testing.T, s *site) {
		r, _, err := s.store.Get(t.Context(), "there")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		half := make([]byte, len(content)/2)
		if _, err := io.ReadFull(r, half); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(append(half, rest...), content) || len(s.asked()) != 1 {
			t.Errorf("%d bytes more, %v, asked %q", len(rest), err, s.asked())
		}
	})
}

// rewrite changes the answer's header and body.
func rewrite(change func(h http.Header, body []byte) []byte) fault {
	return func(w http.ResponseWriter, r *http.Request, answer http.Handler) {
		b := &recorded{header: http.Header{}, code: 200}
		answer.ServeHTTP(b, r)
		body := change(b.header, b.body.Bytes())
		for k, v := range b.header {
			w.Header()[k] = v
		}
		w.WriteHeader(b.code)
		w.Write(body)
	}
}

type recorded struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) Write(b []byte) (int, error) { return r.body.Write(b) }
func (r *recorded) WriteHeader(code int)        { r.code = code }

// TestLies: no answer about the content is believed that the rest of it belies.
func TestLies(t *testing.T) {
	t.Parallel()
	middle := func(after fault) fault {
		var begun atomic.Bool
		return func(w http.ResponseWriter, r *http.Request, answer http.Handler) {
			if !begun.Swap(true) {
				part(1000, abort)(w, r, answer)
				return
			}
			after(w, r, answer)
		}
	}
	for name, test := range map[string]struct {
		f    fault
		is   error
		want string
	}{
		"another byte": {rewrite(func(h http.Header, b []byte) []byte { b[1000] ^= 1; return b }), objects.ErrCorrupt, "checksum"},
		"shorter": {rewrite(func(h http.Header, b []byte) []byte {
			h.Set("Content-Length", "1000")
			return b[:1000]
		}), objects.ErrCorrupt, "checksum"},
		"longer": {rewrite(func(h http.Header, b []byte) []byte {
			h.Set("Content-Length", fmt.Sprint(len(b)+3))
			return append(b, "xyz"...)
		}), objects.ErrCorrupt, "checksum"},
		"goes on elsewhere": {middle(rewrite(func(h http.Header, b []byte) []byte {
			h.Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(content)-1, len(content)))
			return b
		})), nil, "from the beginning"},
		"goes on in another": {middle(rewrite(func(h http.Header, b []byte) []byte {
			h.Set("Content-Range", fmt.Sprintf("bytes 1000-%d/%d", len(content), len(content)+1))
			h.Del("Content-Length")
			return append(b, 'x')
		})), nil, "from the beginning"},
		"goes on with other bytes": {middle(rewrite(func(h http.Header, b []byte) []byte { b[0] ^= 1; return b })), objects.ErrCorrupt, "checksum"},
		"was replaced meanwhile": {middle(func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			objectstest.Refuse(w, 404, "notFound", "No such object")
		}), objects.ErrPrecondition, "from the beginning"},
	} {
		t.Run(name, func(t *testing.T) {
			within(t, test.f, func(t *testing.T, s *site) {
				_, err := read(s)
				if err == nil || test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v: want %v with %q", err, test.is, test.want)
				}
			})
		})
	}
	t.Run("what was put", func(t *testing.T) {
		within(t, rewrite(func(h http.Header, b []byte) []byte {
			return bytes.Replace(b, []byte(`"size":"650000"`), []byte(`"size":"7"`), 1)
		}), func(t *testing.T, s *site) {
			if _, err := s.store.Put(t.Context(), "new", content, objects.Condition{}); err == nil || !strings.Contains(err.Error(), "put it again") {
				t.Error(err)
			}
		})
	})
	t.Run("no order", func(t *testing.T) {
		within(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			io.WriteString(w, `{"items":[{"name":"ci/a"}],"nextPageToken":"again"}`)
		}, func(t *testing.T, s *site) {
			n := 0
			for _, err := range s.store.List(t.Context(), "") {
				if n++; n == 2 && (err == nil || !strings.Contains(err.Error(), "no order")) || n > 2 {
					t.Fatal(n, err)
				}
			}
		})
	})
	t.Run("no end", func(t *testing.T) {
		within(t, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
			io.WriteString(w, `{"nextPageToken":"again"}`)
		}, func(t *testing.T, s *site) {
			for _, err := range s.store.List(t.Context(), "") {
				if err == nil || !strings.Contains(err.Error(), "empty page") {
					t.Fatal(err)
				}
			}
		})
	})
}

// TestLostAnswer: what was carried out is not taken for somebody else's work.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	t.Run("put", func(t *testing.T) {
		within(t, times(1, lost), func(t *testing.T, s *site) {
			a, err := s.store.Put(t.Context(), "new", content, objects.Condition{Absent: true})
			if err != nil || a.Size != int64(len(content)) {
				t.Error(a, err)
			}
		})
	})
	t.Run("put over", func(t *testing.T) {
		within(t, nil, func(t *testing.T, s *site) {
			old, err := s.store.Stat(t.Context(), "there")
			if err != nil {
				t.Fatal(err)
			}
			s.Fault = times(1, lost)
			a, err := s.store.Put(t.Context(), "there", []byte("new"), objects.Condition{Generation: old.Generation})
			if err != nil || a.Size != 3 || a.Generation <= old.Generation {
				t.Error(a, err)
			}
		})
	})
	t.Run("touch", func(t *testing.T) {
		within(t, nil, func(t *testing.T, s *site) {
			old, err := s.store.Stat(t.Context(), "there")
			if err != nil {
				t.Fatal(err)
			}
			s.Fault = times(1, lost)
			a, err := s.store.Touch(t.Context(), "there", objects.Condition{Metageneration: old.Metageneration})
			if err != nil || a.Metageneration != old.Metageneration+1 {
				t.Error(a, err)
			}
		})
	})
	t.Run("delete", func(t *testing.T) {
		within(t, times(1, lost), func(t *testing.T, s *site) {
			if err := s.store.Delete(t.Context(), "there", objects.Condition{}); err != nil {
				t.Error(err)
			}
		})
	})
	for name, test := range map[string]func(s *site) error{
		"put": func(s *site) error {
			_, err := s.store.Put(context.Background(), "there", content, objects.Condition{Absent: true})
			return err
		},
		"touch": func(s *site) error {
			_, err := s.store.Touch(context.Background(), "there", objects.Condition{Metageneration: 9})
			return err
		},
	} {
		t.Run(name+", of somebody else", func(t *testing.T) {
			within(t, times(1, cut), func(t *testing.T, s *site) {
				if err := test(s); !errors.Is(err, objects.ErrPrecondition) {
					t.Error(err)
				}
			})
		})
	}
}
