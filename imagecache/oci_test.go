// SPDX-License-Identifier: MIT

package imagecache_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/assemble"
	"github.com/minifleet/minifleet/imagecache/oci"
)

// registryOf counts what is asked for of blobs.
type registryOf struct {
	host string
	// before, if set, is called before a blob is given out.
	before func(blob string)

	mu    sync.Mutex // guards blobs
	blobs map[string]bool
}

func newRegistry(t *testing.T) *registryOf {
	t.Helper()
	r := &registryOf{blobs: map[string]bool{}}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, blob, ok := strings.Cut(q.URL.Path, "/blobs/"); ok && q.Method == http.MethodGet {
			r.mu.Lock()
			r.blobs[blob] = true
			r.mu.Unlock()
			if r.before != nil {
				r.before(blob)
			}
		}
		inner.ServeHTTP(w, q)
	}))
	t.Cleanup(server.Close)
	r.host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// asked lists which of the disks were asked for since the last time, by their numbers.
func (r *registryOf) asked(disks ...[]byte) (numbers []int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, d := range disks {
		if r.blobs[fmt.Sprintf("sha256:%x", sha256.Sum256(framed(d)))] {
			numbers = append(numbers, i)
		}
	}
	clear(r.blobs)
	return numbers
}

// framed is a stream of Apple's LZ4 framing whose only block is as it is.
func framed(content []byte) []byte {
	out := binary.LittleEndian.AppendUint32([]byte("bv4-"), uint32(len(content)))
	return append(append(out, content...), "bv4$"...)
}

// push pushes an image as tart does, and returns its reference by digest.
func (r *registryOf) push(t *testing.T, disks ...[]byte) string {
	t.Helper()
	const kinds = "application/vnd.cirruslabs.tart."
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	add := func(kind types.MediaType, content []byte, notes map[string]string) {
		var err error
		if img, err = mutate.Append(img, mutate.Addendum{Layer: static.NewLayer(content, kind), Annotations: notes, MediaType: kind}); err != nil {
			t.Fatal(err)
		}
	}
	add(kinds+"config.v1", []byte(`{"version":1,"os":"darwin","arch":"arm64","ecid":"YnBsaXN0MDA=","hardwareModel":"YnBsaXN0MDAgYSBtb2RlbA==","cpuCountMin":4,
		"cpuCount":4,"memorySizeMin":4294967296,"memorySize":8589934592,"macAddress":"5e:00:00:00:00:01","diskFormat":"raw"}`), nil)
	for _, d := range disks {
		add(kinds+"disk.v2", framed(d), map[string]string{
			"org.cirruslabs.tart.uncompressed-size":           strconv.Itoa(len(d)),
			"org.cirruslabs.tart.uncompressed-content-digest": fmt.Sprintf("sha256:%x", sha256.Sum256(d)),
		})
	}
	add(kinds+"nvram.v1", []byte("nvram"), nil)
	tag, err := name.NewTag(r.host + "/mac/tahoe:latest")
	if err == nil {
		err = remote.Write(tag, img, remote.WithContext(t.Context()))
	}
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return "oci://" + r.host + "/mac/tahoe@" + digest.String()
}

// TestImagesOfARegistry are fetched into the same cache, and an update is made from the
// version before.
func TestImagesOfARegistry(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	a, b, c, d := noise(1, 2*mib), noise(2, mib), noise(3, 3*mib), noise(4, mib)
	old := r.push(t, a, b, c)
	cache := open(t, t.TempDir())
	tagged := strings.Replace(old[:strings.Index(old, "@")], "tahoe", "tahoe:latest", 1)
	img := ensure(t, cache, tagged)
	want := files{"disk.img": bytes.Join([][]byte{a, b, c}, nil), "nvram.bin": []byte("nvram"), "hardware-model.bin": []byte("bplist00 a model")}
	wantContent(t, img, want)
	if img.GuestOS != "darwin" || !strings.HasSuffix(old, img.Digest) {
		t.Errorf("image %+v", img)
	}
	if damage, err := cache.Verify(t.Context(), img.Digest, nil); err != nil || len(damage) > 0 {
		t.Errorf("verify: %v, %v", damage, err)
	}
	img.Release()
	r.asked()
	next, err := imagecache.Open(imagecache.Config{Dir: cache.Dir(), MaxImages: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { next.Close() })
	wantContent(t, ensure(t, next, old), want)
	if n := r.asked(a, b, c); len(n) > 0 {
		t.Errorf("layers %v were fetched of an image that is there", n)
	}
	now := r.push(t, a, d, c)
	want["disk.img"] = bytes.Join([][]byte{a, d, c}, nil)
	first := filepath.Join(cache.Dir(), ".cache", "images", strings.TrimPrefix(img.Digest, "sha256:"), "disk.img")
	layers := "[1]"
	if err := assemble.Clone(first, filepath.Join(cache.Dir(), "clone")); err != nil {
		layers = "[0 1 2]"
		t.Logf("this volume does not clone: %v", err)
	}
	_ = next.Close()
	last, err := imagecache.Open(imagecache.Config{Dir: cache.Dir(), MaxImages: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { last.Close() })
	r.asked()
	img = ensure(t, last, now)
	wantContent(t, img, want)
	if n := fmt.Sprint(r.asked(a, d, c)); n != layers {
		t.Errorf("layers %s were fetched, want %s", n, layers)
	}
}

// TestARegistrysImageStandsBack has somebody wait for another image while one is fetched of a
// registry for which nobody waits.
func TestARegistrysImageStandsBack(t *testing.T) {
	t.Parallel()
	b := newBucket()
	urgent, _ := b.image(t, "urgent", 9, 1)
	a, z := noise(1, mib), noise(2, mib)
	r := newRegistry(t)
	patient := r.push(t, a, z)
	c := b.cache(t, imagecache.Config{OCI: oci.Options{Layers: 1}})
	asked, hold := make(chan struct{}), make(chan struct{})
	b.hook(func(context.Context, string, int) error {
		select {
		case asked <- struct{}{}:
			<-hold
		case <-hold:
		}
		return nil
	})
	done := make(chan error, 2)
	begin := sync.OnceFunc(func() {
		go func() {
			img, err := c.Ensure(t.Context(), urgent, nil)
			if err == nil {
				img.Release()
			}
			done <- err
		}()
		<-asked
	})
	first := fmt.Sprintf("sha256:%x", sha256.Sum256(framed(a)))
	r.before = func(blob string) {
		if blob == first {
			begin()
		}
	}
	_, digest, _ := strings.Cut(patient, "@")
	waits := make(chan struct{})
	once := sync.OnceFunc(func() { close(waits) })
	go func() {
		img, err := c.EnsureWith(t.Context(), patient, imagecache.Options{Background: true}, func(imagecache.Progress) {
			if status(t, c, digest).State == imagecache.StateWaiting {
				once()
			}
		})
		if err == nil {
			img.Release()
		}
		done <- err
	}()
	<-waits // which it would not without the gate
	if n := r.asked(a, z); len(n) != 1 {
		t.Errorf("layers %v were asked for before it waited, want the first alone", n)
	}
	close(hold)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestARegistrysImageLeavesRoom has a volume fill up while an image of a registry is fetched.
func TestARegistrysImageLeavesRoom(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	ref := r.push(t, bytes.Repeat(noise(1, mib), 20), bytes.Repeat(noise(2, mib), 20))
	c := newBucket().cache(t, imagecache.Config{MinFree: 100 * mib, OCI: oci.Options{Layers: 1}})
	var taken atomic.Int64
	c.SetFree(func() int64 { return 300*mib - taken.Load() })
	_, err := c.Ensure(t.Context(), ref, func(p imagecache.Progress) {
		if p.DoneBytes > 0 {
			taken.Store(195 * mib)
		}
	})
	if !errors.As(err, new(*imagecache.NoRoomError)) || !strings.Contains(err.Error(), "cache.min_free_gib") {
		t.Errorf("on a volume that others fill: %v", err)
	}
	taken.Store(0)
	fetch(t, c, ref)
}
