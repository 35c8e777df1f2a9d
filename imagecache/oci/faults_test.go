// SPDX-License-Identifier: MIT

package oci_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/oci"
)

// small is an image of two layers for faults.
func small() (nvram []byte, disks [][]byte) {
	return realistic(51, 5000), [][]byte{realistic(52, 2<<20), realistic(53, 1<<20+77)}
}

// TestImageRefuses reads images that are not what they should be.
func TestImageRefuses(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	with := func(change func(l []pushed) []pushed) []pushed { return change(tart(nvram, disks...)) }
	for name, tt := range map[string]struct {
		change func(l []pushed) []pushed
		o      oci.Options
		want   string
	}{
		"no configuration":     {func(l []pushed) []pushed { return l[1:] }, oci.Options{}, "0 configurations"},
		"two configurations":   {func(l []pushed) []pushed { return append(l, pushed{kind: typeConfig, content: []byte("{}")}) }, oci.Options{}, "2 configurations"},
		"no NVRAM":             {func(l []pushed) []pushed { return l[:3] }, oci.Options{}, "0 NVRAM"},
		"no disk":              {func(l []pushed) []pushed { return append(l[:1], l[3]) }, oci.Options{}, "0 disk layers"},
		"another form of disk": {func(l []pushed) []pushed { l[1].kind = "application/vnd.cirruslabs.tart.disk.v1"; return l }, oci.Options{}, "a form of disk that this program does not read"},
		"sparse disk": {func(l []pushed) []pushed {
			l[0].content = []byte(strings.Replace(config(), "raw", "asif", 1))
			return l
		}, oci.Options{}, `format "asif"`},
		"another host's":             {func(l []pushed) []pushed { return l }, oci.Options{Arch: "amd64"}, "made for arm64 and this host has amd64"},
		"configuration that is none": {func(l []pushed) []pushed { l[0].content = []byte("config"); return l }, oci.Options{}, "config.json of tart"},
		"configuration too large":    {func(l []pushed) []pushed { l[0].content = make([]byte, 300<<10); return l }, oci.Options{}, "it has 307200 bytes"},
		"screen too large": {func(l []pushed) []pushed {
			l[0].content = []byte(strings.Replace(config(), `"cpuCountMin":4`, `"cpuCountMin":4,"display":{"width":20000,"height":20000}`, 1))
			return l
		}, oci.Options{}, "display"},
		"no size":             {func(l []pushed) []pushed { l[1] = l[1].changed("uncompressed-size", ""); return l }, oci.Options{}, `uncompressed-size is ""`},
		"size that is none":   {func(l []pushed) []pushed { l[1] = l[1].changed("uncompressed-size", "1e3"); return l }, oci.Options{}, `uncompressed-size is "1e3"`},
		"size that is absurd": {func(l []pushed) []pushed { l[1] = l[1].changed("uncompressed-size", "9223372036854775807"); return l }, oci.Options{}, "are possible"},
		"no digest":           {func(l []pushed) []pushed { l[1] = l[1].changed("uncompressed-content-digest", "sha256:ab"); return l }, oci.Options{}, "which is no digest"},
		"one blob as two things": {func(l []pushed) []pushed {
			return append(l, l[1].changed("uncompressed-size", "17"))
		}, oci.Options{}, "said to hold something else"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			img, err := s.open(tt.o).Image(t.Context(), s.push(with(tt.change)...))
			if img != nil {
				t.Errorf("%+v", img.Template())
			}
			wants(t, err, tt.want)
			wants(t, err, s.host+"/mac/tahoe@sha256:")
		})
	}
}

func TestImageRefusesAnIndex(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	tag, err := name.NewTag(s.host + "/mac/tahoe:latest")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag, empty.Index); err != nil {
		t.Fatal(err)
	}
	r := s.open(oci.Options{})
	digest, err := r.Resolve(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.Image(t.Context(), digest)
	wants(t, err, "an index of several images")
}

// TestPullRefuses pulls images whose layers are not what the manifest says: they were made
// so, and the registry tells the truth.
func TestPullRefuses(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	for name, tt := range map[string]struct {
		change func(l []pushed)
		want   string
	}{
		"another content":    {func(l []pushed) { l[2] = l[2].changed("uncompressed-content-digest", digest(nil)) }, "not what its digest says, although its blob is"},
		"more than it says":  {func(l []pushed) { l[2] = l[2].changed("uncompressed-size", "65536") }, "it has more"},
		"less than it says":  {func(l []pushed) { l[2] = l[2].changed("uncompressed-size", "1073741824") }, "bytes are missing"},
		"cut off":            {func(l []pushed) { l[2].content = l[2].content[:len(l[2].content)-4] }, "it is cut off"},
		"no LZ4":             {func(l []pushed) { l[2].content = []byte("\x04\x22\x4d\x18 another framing") }, "as Apple frames it"},
		"gigabytes of zeros": {func(l []pushed) { l[2].content = bomb() }, "it has more"},
		"broken within a block": {func(l []pushed) {
			l[2].content = append([]byte("bv41\x08\x00\x00\x00\x04\x00\x00\x00\x101\x00\x00"), l[2].content...)
		}, "before the beginning"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			layers := tart(nvram, disks...)
			tt.change(layers)
			img := s.image(t, s.push(layers...))
			dir := t.TempDir()
			for range 2 { // what is there of a first attempt does not help a second one
				m, err := img.Pull(t.Context(), dir, oci.PullOptions{})
				if m != nil {
					t.Errorf("%+v", m)
				}
				wants(t, err, tt.want)
				wants(t, err, "disk.img at 2097152, layer sha256:")
				wants(t, err, "push it again")
				if info, err := os.Stat(filepath.Join(dir, "disk.img")); err != nil || info.Size() > img.Bytes() {
					t.Errorf("the disk: %v, %v", info, err)
				}
			}
		})
	}
}

// bomb is a few KiB that unpack to 4 GiB.
func bomb() []byte {
	length := bytes.Repeat([]byte{255}, 4000)
	body := append(append([]byte("\x1f\x00\x01\x00"), length...), 0)
	one := block(uint32(1+4+15+255*4000), uint32(len(body)), string(body))
	return []byte(strings.Repeat(one, 4000) + "bv4$")
}

func TestPullWhileTheRegistryFails(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	layers := tart(nvram, disks...)
	second := digest(layers[2].content)
	only := func(fault func(w http.ResponseWriter, q *http.Request, n int) bool) func(http.ResponseWriter, *http.Request, string, int) bool {
		return func(w http.ResponseWriter, q *http.Request, blob string, n int) bool {
			return blob == second && fault(w, q, n)
		}
	}
	status := func(code int) func(http.ResponseWriter, *http.Request, string, int) bool {
		return only(func(w http.ResponseWriter, q *http.Request, _ int) bool {
			return fail(code, `{"errors":[{"code":"DENIED","message":"said\u0007the registry"}]}`)(w, q, "", 0)
		})
	}
	for name, tt := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request, string, int) bool
		want  string
		is    error
		asked int
	}{
		"400": {status(400), "answered 400 Bad Request (DENIED: said the registry)", nil, 1},
		"401": {status(401), "give credentials", oci.ErrForbidden, 1},
		"403": {status(403), "give credentials", oci.ErrForbidden, 1},
		"404": {status(404), "push the image again", oci.ErrNotFound, 1},
		"429": {status(429), "try again later", nil, oci.Tries},
		"500": {status(500), "500 Internal Server Error", nil, oci.Tries},
		"503": {status(503), "503 Service Unavailable", nil, oci.Tries},
		"cut connections": {only(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			cut(w, nil, 0)
			return true
		}), "EOF", nil, 0}, // a connection that was used before is tried anew by itself
		"another content of the same size": {only(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			b := bytes.Clone(layers[2].content)
			b[len(b)/2]++
			_, _ = w.Write(b)
			return true
		}), "is not what its digest says", nil, 1},
		"more than there is": {only(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			_, _ = w.Write(append(bytes.Clone(layers[2].content), 0))
			return true
		}), "is not what its digest says", nil, 1},
		"less than there is": {only(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			_, _ = w.Write([]byte{})
			return true
		}), "the answer ends after 0 of", nil, oci.Tries},
		"another part": {only(func(w http.ResponseWriter, _ *http.Request, n int) bool {
			if n == 1 {
				cut(w, layers[2].content, 100<<10)
				return true
			}
			w.Header().Set("Content-Range", "bytes 0-1/2")
			w.WriteHeader(http.StatusPartialContent)
			return true
		}), "another part than it was asked for", nil, 2},
		"a redirect into the open": {only(func(w http.ResponseWriter, q *http.Request, _ int) bool {
			http.Redirect(w, q, "http://registry.example/blob?signature=sesame", http.StatusTemporaryRedirect)
			return true
		}), "registry.example is not asked without TLS", nil, 1},
		"a redirect to nowhere": {only(func(w http.ResponseWriter, q *http.Request, _ int) bool {
			http.Redirect(w, q, "http://127.0.0.1:1/blob?signature=sesame", http.StatusTemporaryRedirect)
			return true
		}), "ask 127.0.0.1:1", nil, oci.Tries},
		"redirects without end": {only(func(w http.ResponseWriter, q *http.Request, _ int) bool {
			http.Redirect(w, q, q.URL.Path+"?signature=sesame", http.StatusTemporaryRedirect)
			return true
		}), "stopped after 10 redirects", nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			image := s.push(layers...)
			img := s.image(t, image)
			dir := t.TempDir()
			s.make(tt.fault)
			m, err := img.Pull(t.Context(), dir, oci.PullOptions{})
			if m != nil {
				t.Errorf("%+v", m)
			}
			wants(t, err, tt.want)
			wants(t, err, "layer "+second)
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("%v is no %v", err, tt.is)
			}
			if n := s.asked()[second]; tt.asked > 0 && n != tt.asked {
				t.Errorf("asked %d times, want %d", n, tt.asked)
			}
			// Nothing of what is wrong is in the disk, and what was right is not asked for
			// again when the registry is well.
			if b, err := os.ReadFile(filepath.Join(dir, "disk.img")); err != nil || len(b) > len(disks[0]) || !bytes.Equal(b, disks[0][:len(b)]) {
				t.Errorf("the disk has %d bytes, %v", len(b), err)
			}
			s.make(nil)
			s.pull(t, image, dir, nvram, disks...)
		})
	}
}

// cut answers with the beginning of something and closes the connection.
func cut(w http.ResponseWriter, whole []byte, after int) {
	c, out, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	if after > 0 {
		fmt.Fprintf(out, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", len(whole))
		_, _ = out.Write(whole[:after])
		_ = out.Flush()
	}
}

// TestPullGoesOnAfterFailures has each blob fail in one way or another and then be right.
// What came before a connection broke is not fetched again.
func TestPullGoesOnAfterFailures(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	layers := tart(nvram, disks...)
	content := map[string][]byte{}
	fetched := int64(0)
	for _, l := range layers[1:] {
		content[digest(l.content)] = l.content
		fetched += int64(len(l.content))
	}
	for name, tt := range map[string]struct {
		fault func(t *testing.T, w http.ResponseWriter, q *http.Request, blob string, n int) bool
		more  bool // parts are fetched again
	}{
		"too many requests": {fault: func(_ *testing.T, w http.ResponseWriter, _ *http.Request, _ string, n int) bool {
			if n > 2 {
				return false
			}
			w.Header().Set("Retry-After", "17")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}},
		"unavailable but once": {fault: func(_ *testing.T, w http.ResponseWriter, _ *http.Request, _ string, n int) bool {
			if n == oci.Tries {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}},
		"connections break": {fault: func(t *testing.T, w http.ResponseWriter, q *http.Request, blob string, n int) bool {
			b := content[blob]
			if n > 1 {
				if want := fmt.Sprintf("bytes=%d-%d", len(b)/3, len(b)-1); q.Header.Get("Range") != want {
					t.Errorf("range %q, want %q", q.Header.Get("Range"), want)
				}
				return false
			}
			cut(w, b, len(b)/3)
			return true
		}},
		"connections break and parts are unknown": {more: true, fault: func(_ *testing.T, w http.ResponseWriter, _ *http.Request, blob string, n int) bool {
			b := content[blob]
			if n > 2 {
				_, _ = w.Write(b)
			} else {
				cut(w, b, len(b)/3)
			}
			return true
		}},
		"parts cannot be had": {more: true, fault: func(_ *testing.T, w http.ResponseWriter, q *http.Request, blob string, n int) bool {
			b := content[blob]
			switch {
			case n == 1:
				cut(w, b, len(b)/3)
			case q.Header.Get("Range") != "":
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			default:
				_, _ = w.Write(b)
			}
			return true
		}},
		"a part is wrong": {more: true, fault: func(_ *testing.T, w http.ResponseWriter, q *http.Request, blob string, n int) bool {
			b := bytes.Clone(content[blob])
			if n > 1 {
				return false
			}
			b[0]++
			cut(w, b, len(b)/3)
			return true
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			image := s.push(layers...)
			r, err := oci.Open(s.ref(), oci.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var short atomic.Int32
			oci.Hasten(r, time.Minute, func(d time.Duration) {
				if d < 17*time.Second {
					short.Add(1)
				}
			})
			img, err := r.Image(t.Context(), image)
			if err != nil {
				t.Fatal(err)
			}
			s.make(func(w http.ResponseWriter, q *http.Request, blob string, n int) bool {
				return content[blob] != nil && tt.fault(t, w, q, blob, n)
			})
			dir := t.TempDir()
			var last assemble.Progress
			m, err := img.Pull(t.Context(), dir, oci.PullOptions{Progress: func(p assemble.Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			holds(t, dir, m, nvram, disks...)
			if last.DoneBytes != last.TotalBytes || last.FetchedBytes < fetched || !tt.more && last.FetchedBytes > fetched {
				t.Errorf("progress ends with %+v, and %d bytes are in the registry", last, fetched)
			}
			if n := short.Load(); name == "too many requests" && n > 0 {
				t.Errorf("%d pauses were shorter than the registry asked for", n)
			}
		})
	}
}

// TestPullDoesNotTrustItsSpool puts something else where an earlier call would have left
// its layers.
func TestPullDoesNotTrustItsSpool(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	s := newSite(t)
	layers := tart(nvram, disks...)
	image := s.push(layers...)
	for name, there := range map[string][]byte{
		"as long": make([]byte, len(layers[1].content)), "shorter": make([]byte, 1000), "longer": make([]byte, 5<<20),
		"the beginning": layers[1].content[:1234], "whole": layers[1].content,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			spool := filepath.Join(dir, oci.DirSpool)
			if err := os.Mkdir(spool, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, file := range []string{strings.TrimPrefix(digest(layers[1].content), "sha256:"), strings.Repeat("0", 64)} {
				if err := os.WriteFile(filepath.Join(spool, file), there, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s.make(nil)
			s.pull(t, image, dir, nvram, disks...)
			if n := s.asked()[digest(layers[1].content)]; name == "whole" && n != 0 {
				t.Errorf("asked %d times for what was there", n)
			}
		})
	}
}

// TestPullOfAStalledLayer waits for a registry that says nothing, before or within its
// answer.
func TestPullOfAStalledLayer(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	s := newSite(t)
	layers := tart(nvram, disks...)
	image := s.push(layers...)
	r, err := oci.Open(s.ref(), oci.Options{})
	if err != nil {
		t.Fatal(err)
	}
	oci.Hasten(r, time.Second, func(time.Duration) {})
	img, err := r.Image(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	b := layers[2].content
	var stalled atomic.Int32
	s.make(func(w http.ResponseWriter, q *http.Request, blob string, n int) bool {
		if blob != digest(b) || n > 2 {
			return false
		}
		if n == 2 {
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			_, _ = w.Write(b[:1000])
			_ = http.NewResponseController(w).Flush()
		}
		stalled.Add(1)
		<-q.Context().Done() // the other side gives up
		return true
	})
	dir := t.TempDir()
	m, err := img.Pull(t.Context(), dir, oci.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, m, nvram, disks...)
	if n := stalled.Load(); n != 2 {
		t.Errorf("%d answers stalled", n)
	}
}

// TestPullKeepsToItsLimit has a limit that lets through one image and no more.
func TestPullKeepsToItsLimit(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	s := newSite(t)
	layers := tart(nvram, disks...)
	image := s.push(layers...)
	room := 0
	for _, l := range layers[1:] {
		room += len(l.content)
	}
	room += 64 << 10 // for manifests and configuration, once
	limit := rate.NewLimiter(0, room)
	r := s.open(oci.Options{Limit: limit})
	img, err := r.Image(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := img.Pull(t.Context(), t.TempDir(), oci.PullOptions{}); err != nil {
		t.Fatal(err)
	}
	// With a deadline the limiter says at once that it will not let through any more.
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	_, err = img.Pull(ctx, t.TempDir(), oci.PullOptions{})
	wants(t, err, "would exceed context deadline")
}

// TestCredentials asks a registry that wants a token, which a token server gives for a
// password, and whose blobs lie on another server, which must see neither.
func TestCredentials(t *testing.T) {
	nvram, disks := small()
	s := newSite(t)
	layers := tart(nvram, disks...)
	image := s.push(layers...)
	content := map[string][]byte{}
	for _, l := range layers {
		content[digest(l.content)] = l.content
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.Header.Get("Authorization") != "" || q.URL.Query().Get("signature") != "sesame" {
			t.Errorf("%s sees %v", q.URL, q.Header)
		}
		_, _ = w.Write(content[filepath.Base(q.URL.Path)])
	}))
	defer elsewhere.Close()
	s.make(func(w http.ResponseWriter, q *http.Request, blob string, _ int) bool {
		user, password, _ := q.BasicAuth()
		switch {
		case q.URL.Path == "/token" && user == "builder" && password == "open sesame"[5:]:
			_, _ = io.WriteString(w, `{"token":"token of sesame"}`)
		case q.URL.Path == "/token" && user == "confused":
			_, _ = io.WriteString(w, `{"refresh_token":"of sesame"}`)
		case q.URL.Path == "/token":
			w.WriteHeader(http.StatusUnauthorized)
		case q.Header.Get("Authorization") != "Bearer token of sesame" && q.Header.Get("Authorization") != "Bearer sesame2":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+s.host+`/token",service="registry",scope="repository:mac/tahoe:pull"`)
			w.WriteHeader(http.StatusUnauthorized)
		case blob != "":
			http.Redirect(w, q, elsewhere.URL+"/"+blob+"?signature=sesame", http.StatusTemporaryRedirect)
		default:
			return false
		}
		return true
	})
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	docker := t.TempDir()
	if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths":{%q:{"username":"builder","password":"sesame"}}}`, s.host), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("DOCKER_CONFIG", docker)
	for name, o := range map[string]oci.Options{
		"a password": {TokenFile: file("builder:sesame\n")}, "a token": {TokenFile: file("sesame2")}, "Docker's": {Keychain: true},
	} {
		r := s.open(o)
		if got, err := r.Resolve(t.Context()); err != nil || got != image {
			t.Errorf("%s: %s, %v", name, got, err)
		}
		img, err := r.Image(t.Context(), image)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		dir := t.TempDir()
		m, err := img.Pull(t.Context(), dir, oci.PullOptions{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		holds(t, dir, m, nvram, disks...)
	}
	for name, tt := range map[string]struct {
		o    oci.Options
		want string
	}{
		"nobody":           {oci.Options{}, "give credentials"},
		"another password": {oci.Options{TokenFile: file("builder:sesame3")}, "give credentials"},
		"another token":    {oci.Options{TokenFile: file("sesame4")}, "give credentials"},
		"no token":         {oci.Options{TokenFile: file("\n")}, "it must hold one line"},
		"no token for it":  {oci.Options{TokenFile: file("confused:sesame")}, "no token in bearer response"},
		"two lines":        {oci.Options{TokenFile: file("sesame\nsesame")}, "it must hold one line"},
		"no file":          {oci.Options{TokenFile: "/no/such/file"}, "no such file"},
	} {
		_, err := s.open(tt.o).Resolve(t.Context())
		wants(t, err, tt.want)
		if strings.Contains(tt.want, "credentials") && !errors.Is(err, oci.ErrForbidden) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	nvram, disks := small()
	s := newSite(t)
	first := s.push(tart(nvram, disks...)...)
	r := s.open(oci.Options{})
	if got, err := r.Resolve(t.Context()); err != nil || got != first {
		t.Errorf("%s, %v, want %s", got, err, first)
	}
	// The tag moves; the old image is still there by its digest.
	second := s.push(tart(nvram, disks[0])...)
	if got, err := r.Resolve(t.Context()); err != nil || got != second || second == first {
		t.Errorf("%s, %v, want %s", got, err, second)
	}
	s.pull(t, first, t.TempDir(), nvram, disks...)
	ref := s.ref().At(first)
	pinned, err := oci.Open(ref, oci.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pinned.Resolve(t.Context()); err != nil || got != first {
		t.Errorf("%s, %v", got, err)
	}
	missing := s.ref()
	missing.Tag = "none"
	r, err = oci.Open(missing, oci.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Resolve(t.Context()); !errors.Is(err, oci.ErrNotFound) {
		t.Errorf("%s, %v", got, err)
	}
	_, err = r.Image(t.Context(), "latest")
	wants(t, err, "is no digest")
	s.make(func(w http.ResponseWriter, q *http.Request, _ string, _ int) bool {
		if !strings.Contains(q.URL.Path, "/manifests/") {
			return false
		}
		_, _ = w.Write([]byte("{}"))
		return true
	})
	_, err = s.open(oci.Options{}).Image(t.Context(), first)
	wants(t, err, "its manifest is not what its digest says")
	s.make(func(w http.ResponseWriter, q *http.Request, _ string, _ int) bool {
		if !strings.Contains(q.URL.Path, "/manifests/") {
			return false
		}
		_, _ = w.Write(make([]byte, 5<<20))
		return true
	})
	_, err = s.open(oci.Options{}).Image(t.Context(), first)
	wants(t, err, "more than 4194304 bytes")
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for want, change := range map[string]string{"is not in a registry": "gs", "the scheme": "ftp"} {
		ref := s.ref()
		ref.Scheme = change
		if r, err := oci.Open(ref, oci.Options{}); err == nil {
			t.Errorf("%s: %v, want %q", change, r, want)
		}
	}
	for _, location := range []string{"", "/", "registry.example/..", "registry.example/a//b", "user@registry.example", "registry.example?x"} {
		ref := s.ref()
		ref.Location = location
		if r, err := oci.Open(ref, oci.Options{}); err == nil {
			t.Errorf("%q: %v", location, r)
		}
	}
}
