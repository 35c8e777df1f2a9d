// SPDX-License-Identifier: MIT

package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/e2e/disks"
	"github.com/minifleet/minifleet/imagecache/manifest"
	vmoptions "github.com/minifleet/minifleet/vm/options"
)

const (
	// imageSize is that of the image that is pulled, seriesSize that of the one that is
	// updated over and over.
	imageSize  = 8 << 30
	seriesSize = 2 << 30
	// imagePart of the blocks is changed by an update.
	imagePart = 0.03
	// layerSize is the granularity with which images in tart's format move.
	layerSize = 512 << 20
	// lineRate is what a limited line carries, in bytes of a second.
	lineRate = 300_000_000
	// cacheMemory is what an agent that pulls may hold.
	cacheMemory = 200 << 20
)

// bucket is a bucket in a process of its own, and an image that goes there.
type bucket struct {
	*bencher
	dir     string
	process *process
	client  *http.Client
	sources *disks.Sources
	size    int64
	seed    uint64
}

// newBucket starts the bucket and makes an image of so many bytes.
func newBucket(ctx context.Context, b *bencher, dir string, size int64) (_ *bucket, err error) {
	k := &bucket{bencher: b, dir: dir, client: &http.Client{Transport: &http.Transport{}}, size: max(24<<20, int64(float64(size)*b.scale)>>20<<20), seed: 1}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	if err := errors.Join(os.MkdirAll(k.source(), 0o700), os.Mkdir(filepath.Join(dir, "bucket"), 0o700)); err != nil {
		return nil, err
	}
	if k.sources, err = disks.Load(ctx, 48<<20); err != nil {
		return nil, err
	}
	if err := k.sources.Write(ctx, filepath.Join(k.source(), vmoptions.FileDisk), k.size, k.seed); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(k.source(), "image.json"), []byte(`{"schema": 1, "name": "bench", "guest_os": "linux"}`), 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	k.process, err = launch(ctx, dir, "bucket", []string{"bucket", "control"}, nil, self, imagesWord, "bucket", "-dir", filepath.Join(dir, "bucket"))
	return k, err
}

func (k *bucket) close() {
	k.process.stop()
	k.client.CloseIdleConnections()
}

func (k *bucket) source() string { return filepath.Join(k.dir, "source") }

// sent is what the bucket has sent, headers included; with a limit it also sets that.
func (k *bucket) sent(ctx context.Context, limit ...int64) (int64, error) {
	url := k.process.said["control"]
	if len(limit) > 0 {
		url += "?limit=" + strconv.FormatInt(limit[0], 10)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := k.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
}

// program runs one of the programs of images to its end, and says what the bucket sent
// meanwhile.
func (k *bucket) program(ctx context.Context, word string, args ...string) (r imagesResult, sent int64, err error) {
	self, err := os.Executable()
	if err != nil {
		return r, 0, err
	}
	unix.Sync() // what was written before is not to be written meanwhile
	before, err := k.sent(ctx)
	if err != nil {
		return r, 0, err
	}
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, self, append([]string{imagesWord, word, "-endpoint", k.process.said["bucket"]}, args...)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &complaint, k.dir
	if err := cmd.Run(); err != nil {
		return r, 0, fmt.Errorf("images %s: %w\n%s\nthe bucket says:\n%s", word, err, &complaint, k.process.tail())
	}
	after, err := k.sent(ctx)
	return r, after - before, errors.Join(err, json.Unmarshal(out.Bytes(), &r))
}

// push publishes the image as it is now.
func (k *bucket) push(ctx context.Context) (imagesResult, error) {
	r, _, err := k.program(ctx, "push", "-dir", k.source(), "-ref", k.ref(""))
	return r, err
}

func (k *bucket) ref(digest string) string {
	if digest == "" {
		return "gs://" + bucketName + "/bench:latest"
	}
	return "gs://" + bucketName + "/bench@" + digest
}

func (k *bucket) pull(ctx context.Context, cache, digest string) (imagesResult, int64, error) {
	return k.program(ctx, "pull", "-cache", cache, "-ref", k.ref(digest))
}

// update changes the image as its guest would.
func (k *bucket) update(ctx context.Context) (disks.Changed, error) {
	k.seed++
	return k.sources.Update(ctx, filepath.Join(k.source(), vmoptions.FileDisk), k.seed, imagePart)
}

// manifest reads that of a version.
func (k *bucket) manifest(ctx context.Context, digest string) (*manifest.Manifest, error) {
	return manifestOf(ctx, k.client, k.process.said["bucket"], k.ref(digest))
}

// rate is in bytes of a second.
func rate(n int64, d time.Duration) float64 { return float64(n) / d.Seconds() }

// gib is what each GiB took, in seconds.
func gib(d time.Duration, n int64) float64 { return d.Seconds() / float64(n) * (1 << 30) }

func mbs(r float64) string { return fmt.Sprintf("%.0f MB/s", r/1e6) }

// written sums what an image has but chunks of zeros, and what that is in the bucket.
func written(m *manifest.Manifest) (content, stored int64) {
	for i := range m.Files {
		for n, c := range m.Files[i].Chunks {
			if !c.Zero() {
				content += m.Files[i].ChunkSize(n, m)
				stored += c.Stored
			}
		}
	}
	return content, stored
}

// measureImages pushes and pulls an image of 8 GiB, and then an update of it.
func measureImages(ctx context.Context, b *bencher) (err error) {
	dir := filepath.Join(b.dir, "images")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	size := int64(float64(imageSize) * b.scale)
	if room := freeSpace(dir); room < 3*size+(1<<30) {
		b.skip(fmt.Sprintf("pull of an image of %s", mib(size)), "90 % of plain", fmt.Sprintf("%s free: too little for image, bucket and cache; take -scale or -dir", mib(room)))
		return nil
	}
	k, err := newBucket(ctx, b, dir, imageSize)
	if err != nil {
		return err
	}
	defer func() {
		k.close()
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	first, err := k.push(ctx)
	if err != nil {
		return err
	}
	m, err := k.manifest(ctx, first.Digest)
	if err != nil {
		return err
	}
	content, stored := written(m)
	b.note(fmt.Sprintf("image of %s, chunks of %s", mib(k.size), mib(m.ChunkBytes)),
		fmt.Sprintf("%s are not chunks of zeros, %s in the bucket", mib(content), mib(stored)))
	b.note("  first push", fmt.Sprintf("%s of what is not zero; %d of %d chunks uploaded; %s memory", mbs(rate(content, first.Took)), first.Uploaded, first.Chunks, mib(first.Memory)))
	if err := k.unchanged(ctx, content); err != nil {
		return err
	}
	if err := k.pulls(ctx, first.Digest, content, stored); err != nil {
		return err
	}
	return k.delta(ctx, first.Digest, m)
}

// unchanged pushes what is there already.
func (k *bucket) unchanged(ctx context.Context, content int64) error {
	again, err := k.push(ctx)
	if err != nil {
		return err
	}
	r := rate(k.size, again.Took)
	k.limit("push of the same image again", "no chunk, >= 1 GB/s", fmt.Sprintf("%d chunks; %.2f GB/s, of what is not zero %.2f GB/s; %s memory", again.Uploaded, r/1e9, rate(content, again.Took)/1e9, mib(again.Memory)),
		again.Uploaded == 0 && again.UploadedBytes == 0 && r >= 1e9)
	k.note("  this machine's SHA-256, all cores", fmt.Sprintf("%.2f GB/s", hashRate()/1e9))
	return nil
}

// hashRate is how fast all processors together hash what is in memory.
func hashRate() float64 {
	const piece, rounds = 4 << 20, 128
	var group sync.WaitGroup
	began := time.Now()
	for range runtime.NumCPU() {
		group.Go(func() {
			b := make([]byte, piece)
			for range rounds {
				b[0] = sha256.Sum256(b)[0]
			}
		})
	}
	group.Wait()
	return rate(int64(runtime.NumCPU()*piece*rounds), time.Since(began))
}

// pulls compares the cache's pull with plain downloads before and after it, and with the
// line where that is what bounds it.
func (k *bucket) pulls(ctx context.Context, digest string, content, stored int64) error {
	var best [2]time.Duration // plain, and plain that also writes
	var cost time.Duration    // of the processors, of the better plain one
	plain := func() error {
		file := filepath.Join(k.dir, "plain")
		for i, args := range [][]string{{}, {"-write", file}} {
			r, _, err := k.program(ctx, "plain", append(args, "-ref", k.ref(digest))...)
			if err != nil {
				return err
			}
			if best[i] == 0 || r.Took < best[i] {
				best[i] = r.Took
				if i == 0 {
					cost = r.CPU
				}
			}
		}
		return os.Remove(file)
	}
	pull := func() (r imagesResult, sent int64, err error) {
		cache := filepath.Join(k.dir, "pulled")
		if err := os.Mkdir(cache, 0o700); err != nil {
			return r, 0, err
		}
		r, sent, err = k.pull(ctx, cache, digest)
		return r, sent, errors.Join(err, os.RemoveAll(cache))
	}
	if err := plain(); err != nil {
		return err
	}
	r, _, err := pull()
	if err != nil {
		return err
	}
	if err := plain(); err != nil {
		return err
	}
	part := best[0].Seconds() / r.Took.Seconds()
	k.limit("pull, as a part of a plain download", ">= 90 %", fmt.Sprintf("%.0f %%: %s, plain %s, n 1 of 2", 100*part, mbs(rate(content, r.Took)), mbs(rate(content, best[0]))), part >= 0.9)
	k.note("  processors, of each GiB", fmt.Sprintf("%.2f s, plain %.2f s", gib(r.CPU, content), gib(cost, content)))
	k.note("  of one that writes to the same disk too", fmt.Sprintf("%.0f %%: %s", 100*best[1].Seconds()/r.Took.Seconds(), mbs(rate(content, best[1]))))
	k.limit("  memory of the process that pulls", "< 200 MiB", mib(r.Memory), r.Memory > 0 && r.Memory < cacheMemory)
	if _, err := k.sent(ctx, lineRate); err != nil {
		return err
	}
	r, sent, err := pull()
	if _, err2 := k.sent(ctx, 0); err != nil || err2 != nil {
		return errors.Join(err, err2)
	}
	line := rate(sent, r.Took)
	k.limit("pull over a line of 300 MB/s", ">= 98 % of the line", fmt.Sprintf("%.1f %%: %s on the line, %s written", 100*line/lineRate, mbs(line), mbs(rate(content, r.Took))), line >= 0.98*lineRate)
	k.note("  sent for it, beside the chunks", fmt.Sprintf("%.2f %%", 100*(float64(sent)/float64(stored)-1)))
	return nil
}

// delta pulls an update onto the version before it.
func (k *bucket) delta(ctx context.Context, before string, old *manifest.Manifest) error {
	cache := filepath.Join(k.dir, "updated")
	if err := os.Mkdir(cache, 0o700); err != nil {
		return err
	}
	if _, _, err := k.pull(ctx, cache, before); err != nil {
		return err
	}
	changed, err := k.update(ctx)
	if err != nil {
		return err
	}
	pushed, err := k.push(ctx)
	if err != nil {
		return err
	}
	m, err := k.manifest(ctx, pushed.Digest)
	if err != nil {
		return err
	}
	r, sent, err := k.pull(ctx, cache, pushed.Digest)
	if err != nil {
		return err
	}
	d := differ(old, m)
	k.note("update", fmt.Sprintf("%.2f %% of the blocks in %d runs; %d of %d chunks; %d uploaded", 100*float64(changed.Blocks)*disks.Block/float64(k.size), changed.Extents, d.chunks, d.of, pushed.Uploaded))
	k.limit("  fetched, of the changed chunks' size", "<= 1.25x", fmt.Sprintf("%.3fx: %s", float64(sent)/float64(d.stored), mib(sent)), float64(sent) <= 1.25*float64(d.stored))
	k.limit("  fetched, of what 512 MiB layers move", "<= 25 %", fmt.Sprintf("%.1f %%, layers %s", 100*float64(sent)/float64(d.layers), mib(d.layers)), float64(sent) <= 0.25*float64(d.layers))
	k.note("  time from the version before", fmt.Sprintf("%.1f s; %s memory", r.Took.Seconds(), mib(r.Memory)))
	return nil
}

// difference is what there is to bring of a new version.
type difference struct {
	chunks, of int
	stored     int64 // bytes of the chunks that the old one has nowhere
	layers     int64 // the same, if 512 MiB were compressed and moved as one
}

// differ compares two versions. What a layer takes is what its chunks take: compressed as
// one, or with LZ4 as tart does, it would not take less.
func differ(old, m *manifest.Manifest) (d difference) {
	had := map[manifest.Sum]bool{}
	at := map[string]*manifest.File{}
	for i := range old.Files {
		at[old.Files[i].Path] = &old.Files[i]
		for _, c := range old.Files[i].Chunks {
			had[c.Sum] = true
		}
	}
	for i := range m.Files {
		f := &m.Files[i]
		layer := int64(-1)
		var size int64
		moved := false
		flush := func() {
			if moved {
				d.layers += size
			}
			size, moved = 0, false
		}
		for n, c := range f.Chunks {
			if l := int64(n) * m.ChunkBytes / layerSize; l != layer {
				flush()
				layer = l
			}
			d.of++
			size += c.Stored
			before := at[f.Path]
			if before == nil || n >= len(before.Chunks) || before.Chunks[n].Sum != c.Sum {
				moved = true
				d.chunks++
			}
			if !c.Zero() && !had[c.Sum] {
				had[c.Sum] = true
				d.stored += c.Stored
			}
		}
		flush()
	}
	return d
}

// measureReady makes bundles of an image on a file system that clones, whole and after each
// of ten updates.
func measureReady(ctx context.Context, b *bencher) (err error) {
	dir := filepath.Join(b.dir, "ready")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	const figure = "cached image to bundle, on xfs"
	size := max(24<<20, int64(float64(seriesSize)*b.scale))
	v, why, err := b.mount(ctx, filepath.Join(dir, "xfs"), "xfs", 3*size+(1<<30))
	if err != nil {
		return err
	}
	if why != "" {
		b.skip(figure, "< 20 ms", why)
		return os.RemoveAll(dir)
	}
	defer func() { err = errors.Join(err, v.unmount(), os.RemoveAll(dir)) }()
	k, err := newBucket(ctx, b, dir, seriesSize)
	if err != nil {
		return err
	}
	defer k.close()
	cache, bundles := filepath.Join(v.dir, "images"), filepath.Join(v.dir, "vms")
	if err := errors.Join(os.Mkdir(cache, 0o700), os.Mkdir(bundles, 0o700)); err != nil {
		return err
	}
	rounds := b.few(10)
	for i := range rounds + 1 {
		if i > 0 {
			if _, err := k.update(ctx); err != nil {
				return err
			}
		}
		pushed, err := k.push(ctx)
		if err != nil {
			return err
		}
		if _, _, err := k.pull(ctx, cache, pushed.Digest); err != nil {
			return err
		}
		r, _, err := k.program(ctx, "ready", "-cache", cache, "-dir", bundles, "-ref", k.ref(pushed.Digest), "-rounds", strconv.Itoa(b.of(21)))
		if err != nil {
			return err
		}
		n, err := extents(filepath.Join(r.Dir, vmoptions.FileDisk))
		if err != nil {
			return err
		}
		seen := fmt.Sprintf("p50 %s, max %s; of that the image %s; %d extents", fine(r.Clone.at(0.5)), fine(r.Clone.at(1)), fine(r.Ensure.at(0.5)), n)
		switch {
		case i == 0:
			b.limit(figure, "< 20 ms", seen, r.Clone.at(0.5) < 20*time.Millisecond)
		case i == 1 || i == rounds || i == rounds/2:
			b.note(fmt.Sprintf("  after %d updates of 3 %%", i), seen)
		}
	}
	return nil
}
