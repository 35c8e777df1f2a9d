// SPDX-License-Identifier: MIT

package oci_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/oci"
)

const (
	typeConfig = "application/vnd.cirruslabs.tart.config.v1"
	typeDisk   = "application/vnd.cirruslabs.tart.disk.v2"
	typeNVRAM  = "application/vnd.cirruslabs.tart.nvram.v1"
)

var model = []byte("bplist00 a hardware model")

func config() string {
	return `{"version":1,"os":"darwin","arch":"arm64","ecid":"YnBsaXN0MDA=","hardwareModel":"` + base64.StdEncoding.EncodeToString(model) + `",
		"cpuCountMin":4,"cpuCount":4,"memorySizeMin":4294967296,"memorySize":8589934592,"macAddress":"5e:00:00:00:00:01","diskFormat":"raw"}`
}

// pushed is a layer as it is pushed.
type pushed struct {
	kind    types.MediaType
	content []byte            // as the registry has it
	notes   map[string]string // annotations
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// disk is a layer of a disk. What was packed once is not packed again.
func disk(content []byte) pushed {
	sum := digest(content)
	stored, ok := packed.Load(sum)
	if !ok {
		stored, _ = packed.LoadOrStore(sum, encodeLZ4(content))
	}
	return pushed{typeDisk, bytes.Clone(stored.([]byte)), map[string]string{
		"org.cirruslabs.tart.uncompressed-size":           strconv.Itoa(len(content)),
		"org.cirruslabs.tart.uncompressed-content-digest": sum,
	}}
}

var packed sync.Map // by the digest of the content

// changed is a layer with another annotation.
func (p pushed) changed(note, value string) pushed {
	notes := map[string]string{"org.cirruslabs.tart." + note: value}
	for k, v := range p.notes {
		if _, ok := notes[k]; !ok {
			notes[k] = v
		}
	}
	p.notes = notes
	return p
}

// tart is an image as tart pushes it.
func tart(nvram []byte, disks ...[]byte) []pushed {
	layers := []pushed{{kind: typeConfig, content: []byte(config())}}
	for _, d := range disks {
		layers = append(layers, disk(d))
	}
	return append(layers, pushed{kind: typeNVRAM, content: nvram})
}

// site is a registry, of which a test can make trouble.
type site struct {
	t    testing.TB
	host string

	mu    sync.Mutex
	gets  map[string]int // of blobs, by digest
	all   int
	fault func(w http.ResponseWriter, q *http.Request, blob string, n int) bool // answers itself if it returns true
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, gets: map[string]int{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		_, blob, _ := strings.Cut(q.URL.Path, "/blobs/")
		s.mu.Lock()
		if q.Method == http.MethodGet && blob != "" {
			s.gets[blob]++
		}
		s.all++
		n, fault := s.gets[blob], s.fault
		s.mu.Unlock()
		if fault == nil || q.Method != http.MethodGet || !fault(w, q, blob, n) {
			inner.ServeHTTP(w, q)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.Start()
	t.Cleanup(server.Close)
	s.host = strings.TrimPrefix(server.URL, "http://")
	return s
}

// push pushes an image and returns its digest.
func (s *site) push(layers ...pushed) string {
	s.t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	for _, l := range layers {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(l.content, l.kind), Annotations: l.notes, MediaType: l.kind}); err != nil {
			s.t.Fatal(err)
		}
	}
	tag, err := name.NewTag(s.host + "/mac/tahoe:latest")
	if err != nil {
		s.t.Fatal(err)
	}
	if err := remote.Write(tag, img, remote.WithContext(s.t.Context())); err != nil {
		s.t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		s.t.Fatal(err)
	}
	return d.String()
}

// make sets what goes wrong from now on, and forgets what was asked for.
func (s *site) make(fault func(w http.ResponseWriter, q *http.Request, blob string, n int) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = fault
	clear(s.gets)
	s.all = 0
}

// asked returns how often each blob was asked for.
func (s *site) asked() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	gets := map[string]int{}
	for blob, n := range s.gets {
		gets[blob] = n
	}
	return gets
}

func (s *site) ref() manifest.Reference {
	return manifest.Reference{Scheme: "oci", Location: s.host + "/mac", Name: "tahoe", Tag: "latest"}
}

// open opens the repository, whose pauses take no time.
func (s *site) open(o oci.Options) *oci.Repository {
	s.t.Helper()
	r, err := oci.Open(s.ref(), o)
	if err != nil {
		s.t.Fatal(err)
	}
	oci.Hasten(r, time.Minute, func(time.Duration) {})
	return r
}

func (s *site) image(t testing.TB, digest string) *oci.Image {
	t.Helper()
	img, err := s.open(oci.Options{}).Image(t.Context(), digest)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pull pulls an image and expects it to be right.
func (s *site) pull(t testing.TB, digest, dir string, nvram []byte, disks ...[]byte) *manifest.Manifest {
	t.Helper()
	m, err := s.image(t, digest).Pull(t.Context(), dir, oci.PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	holds(t, dir, m, nvram, disks...)
	return m
}

// holds compares a folder, and the manifest of it, with what was pushed.
func holds(t testing.TB, dir string, m *manifest.Manifest, nvram []byte, disks ...[]byte) {
	t.Helper()
	want := map[string][]byte{"disk.img": bytes.Join(disks, nil), "hardware-model.bin": model, "nvram.bin": nvram}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != len(want) || len(m.Files) != len(want) {
		t.Errorf("the folder has %v, the manifest %d files, %v", entries, len(m.Files), err)
	}
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Path)
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want[f.Path]) {
			t.Errorf("%s has %d bytes, %v, and not the %d that were pushed", f.Path, len(got), err, len(want[f.Path]))
			continue
		}
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o644 || f.Mode != 0o644 || f.Size != info.Size() {
			t.Errorf("%s: %v, %v, in the manifest %o with %d bytes", f.Path, info, err, f.Mode, f.Size)
		}
		for n, c := range f.Chunks {
			content := got[n*manifest.ChunkBytes:][:f.ChunkSize(n, m)]
			sum := manifest.SumOf(content)
			if bytes.Count(content, []byte{0}) == len(content) {
				sum = manifest.Sum{}
			}
			if c.Sum != sum || c.Stored != 0 {
				t.Errorf("%s: chunk %d is %+v, want %s", f.Path, n, c, sum)
			}
		}
	}
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := manifest.Parse(b); err != nil {
		t.Error(err)
	}
}

// stored is how much of a file the disk has.
func stored(t testing.TB, path string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Blocks * 512
}

// wants checks an error and that it has no secrets.
func wants(t testing.TB, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) || strings.Contains(err.Error(), "sesame") || len(err.Error()) > 1000 {
		t.Errorf("%v, want %q", err, text)
	}
}

// mac is the image of most tests: layers of several sizes, one twice, and zeros.
func mac() (nvram []byte, disks [][]byte) { return macOnce() }

var macOnce = sync.OnceValues(func() (nvram []byte, disks [][]byte) {
	a, b, c := realistic(11, 2<<20), realistic(12, 1<<20+4096), realistic(13, 5<<20)
	return realistic(14, 100_000), [][]byte{a, make([]byte, 4<<20), b, make([]byte, 4<<20), c, a, make([]byte, 1<<20)}
})

var errTest = errors.New("the test's error")

func fail(code int, body string) func(http.ResponseWriter, *http.Request, string, int) bool {
	return func(w http.ResponseWriter, _ *http.Request, _ string, _ int) bool {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
		return true
	}
}
