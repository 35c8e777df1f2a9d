// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/e2e/emulator"
	"github.com/minifleet/minifleet/imagecache"
	"github.com/minifleet/minifleet/imagecache/layout"
	"github.com/minifleet/minifleet/imagecache/manifest"
	"github.com/minifleet/minifleet/imagecache/objects"
	"github.com/minifleet/minifleet/imagecache/publish"
	"github.com/minifleet/minifleet/vm"
)

// imagesWord makes this program one of those that the figures of images need as processes
// of their own: `bench images bucket|push|pull|plain|ready`. But for the first they print
// one imagesResult.
const imagesWord = "images"

// bucketName is the bucket of the figures.
const bucketName = "images"

// imagesResult is what such a program has to say. Which fields it fills depends on it.
type imagesResult struct {
	Took    time.Duration `json:"took"`
	CPU     time.Duration `json:"cpu"`     // of its processors, the system's part included
	Memory  int64         `json:"memory"`  // the most that it held, bytes
	Digest  string        `json:"digest"`  // of the image
	Dir     string        `json:"dir"`     // of the image in the cache
	Fetched int64         `json:"fetched"` // bytes, as the cache counts them

	Chunks, Uploaded int   // of a push
	UploadedBytes    int64 // of it

	Ensure, Clone times // each time, until the image was there, and the bundle
}

// imagesArgs are the flags of these programs.
type imagesArgs struct {
	endpoint, dir, ref, cache string
	write                     string
	profile                   string
	bytesPerSecond            int64
	parallel, rounds          int
}

func imagesProgram(args []string, out, complaints io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var a imagesArgs
	flags := flag.NewFlagSet("bench images", flag.ContinueOnError)
	flags.SetOutput(complaints)
	flags.StringVar(&a.endpoint, "endpoint", "", "of the bucket")
	flags.StringVar(&a.dir, "dir", "", "folder of the bucket, or of the image to push, or of bundles")
	flags.StringVar(&a.ref, "ref", "", "the image")
	flags.StringVar(&a.cache, "cache", "", "folder of the cache")
	flags.StringVar(&a.write, "write", "", "file to write the chunks to; nowhere if empty")
	flags.StringVar(&a.profile, "profile", "", "file for a profile of its CPU; none if empty")
	flags.Int64Var(&a.bytesPerSecond, "bytes-per-second", 0, "what the line carries; no limit if 0")
	flags.IntVar(&a.parallel, "parallel", 16, "connections of a plain download")
	flags.IntVar(&a.rounds, "rounds", 1, "times")
	if len(args) == 0 {
		return errors.New("want bucket, push, pull, plain or ready")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if args[0] == "bucket" {
		return bucketProgram(ctx, a, out)
	}
	do, ok := map[string]func(context.Context, imagesArgs) (imagesResult, error){
		"push": pushProgram, "pull": pullProgram, "plain": plainProgram, "ready": readyProgram,
	}[args[0]]
	if !ok {
		return fmt.Errorf("no such program: %s", args[0])
	}
	r, err := a.profiled(func() (imagesResult, error) { return do(ctx, a) })
	if err != nil {
		return err
	}
	_, r.Memory = memoryOf("self")
	return json.NewEncoder(out).Encode(r)
}

// profiled runs f, and says what it cost of the processors.
func (a imagesArgs) profiled(f func() (imagesResult, error)) (r imagesResult, err error) {
	if a.profile != "" {
		file, err := os.Create(a.profile)
		if err != nil {
			return r, err
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return r, err
		}
		defer pprof.StopCPUProfile()
	}
	before := cpuTime()
	r, err = f()
	r.CPU = cpuTime() - before
	return r, err
}

// cpuTime is what this process has used of the processors.
func cpuTime() time.Duration {
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// bucketProgram is the bucket: it says where it is, and what it has sent when it is asked.
func bucketProgram(ctx context.Context, a imagesArgs, out io.Writer) error {
	s, err := emulator.Start(emulator.Options{Dir: a.dir, Buckets: []string{bucketName}, BytesPerSecond: a.bytesPerSecond})
	if err != nil {
		return err
	}
	defer s.Stop()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it never waits
	if err != nil {
		return err
	}
	control := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n, err := strconv.ParseInt(r.FormValue("limit"), 10, 64); err == nil {
			s.Limit(n)
		}
		fmt.Fprintln(w, s.Sent())
	})}
	ended := make(chan error, 1)
	go func() { ended <- control.Serve(l) }()
	fmt.Fprintf(out, "bucket %s\ncontrol http://%s\n", s.URL, l.Addr())
	<-ctx.Done()
	control.Close()
	<-ended
	return nil
}

// storeOptions lead to the bucket.
func (a imagesArgs) storeOptions() objects.Options { return objects.Options{Endpoint: a.endpoint} }

// pushProgram publishes an image, as `minifleet image push` does.
func pushProgram(ctx context.Context, a imagesArgs) (r imagesResult, err error) {
	ref, err := manifest.ParseReference(a.ref)
	if err != nil {
		return r, err
	}
	began := time.Now()
	o := a.storeOptions()
	o.Scheme, o.Location = ref.Scheme, ref.Location
	store, err := objects.Open(ctx, o)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	template, err := layout.Open(a.dir)
	if err != nil {
		return r, err
	}
	p, err := publish.Location{Store: store}.Push(ctx, template, publish.PushOptions{Name: ref.Name, Tag: ref.Tag})
	return imagesResult{Took: time.Since(began), Digest: p.Digest, Chunks: p.Chunks, Uploaded: p.Uploaded, UploadedBytes: p.UploadedBytes}, err
}

func (a imagesArgs) open() (*imagecache.Cache, error) {
	return imagecache.Open(imagecache.Config{Dir: a.cache, Objects: a.storeOptions()})
}

// pullProgram brings an image into the cache, as the agent does.
func pullProgram(ctx context.Context, a imagesArgs) (r imagesResult, err error) {
	c, err := a.open()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	began := time.Now()
	img, err := c.Ensure(ctx, a.ref, func(p imagecache.Progress) { r.Fetched = p.FetchedBytes })
	r.Took = time.Since(began)
	if err != nil {
		return r, err
	}
	defer img.Release()
	r.Digest, r.Dir = img.Digest, img.Dir
	return r, nil
}

// readyProgram makes bundles of an image that is in the cache, one after the other.
func readyProgram(ctx context.Context, a imagesArgs) (r imagesResult, err error) {
	c, err := a.open()
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	for i := range a.rounds + 1 {
		began := time.Now()
		img, err := c.Ensure(ctx, a.ref, nil)
		if err != nil {
			return r, err
		}
		found := time.Since(began)
		dir, err := vm.Create(ctx, vm.CreateConfig{
			Dir: a.dir, ImageDir: img.Dir,
			Spec: vm.Spec{ID: fmt.Sprintf("r%d", i), CPUs: machineCPUs, MemoryMiB: machineMemory, Backend: vm.BackendQEMU, MaxLife: time.Hour, Options: []byte("{}")},
		})
		took := time.Since(began)
		r.Dir = img.Dir
		img.Release()
		if err == nil {
			err = vm.Remove(ctx, dir)
		}
		if err != nil {
			return r, err
		}
		if i > 0 { // the first finds nothing in memory
			r.Ensure, r.Clone = append(r.Ensure, found), append(r.Clone, took)
		}
	}
	return r, nil
}

// plainProgram downloads the same objects with nothing but HTTP, decoding and hashing.
func plainProgram(ctx context.Context, a imagesArgs) (r imagesResult, err error) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: a.parallel, DisableCompression: true}}
	defer client.CloseIdleConnections()
	m, err := manifestOf(ctx, client, a.endpoint, a.ref)
	if err != nil {
		return r, err
	}
	var file *os.File
	if a.write != "" {
		if file, err = os.Create(a.write); err != nil {
			return r, err
		}
		defer file.Close()
	}
	began := time.Now()
	type buffers struct{ stored, content []byte }
	free := make(chan *buffers, a.parallel)
	for range a.parallel {
		free <- &buffers{make([]byte, manifest.MaxStored(m.ChunkBytes)), make([]byte, m.ChunkBytes)}
	}
	tasks, inner := errgroup.WithContext(ctx)
	// As many as the processors can work on decode at once; the others fetch.
	decoding := make(chan struct{}, runtime.NumCPU())
	at := int64(0)
	for i := range m.Files {
		f := &m.Files[i]
		for n, c := range f.Chunks {
			if c.Zero() {
				continue
			}
			size, offset := f.ChunkSize(n, m), at+int64(n)*m.ChunkBytes
			b := <-free
			tasks.Go(func() error {
				defer func() { free <- b }()
				stored, err := get(inner, client, a.endpoint, manifest.ChunkObject(c.Sum), b.stored)
				if err != nil {
					return err
				}
				decoding <- struct{}{}
				defer func() { <-decoding }()
				content, err := manifest.DecompressInto(b.content, stored, size, c.Sum)
				if err == nil && file != nil {
					_, err = file.WriteAt(content, offset)
				}
				return err
			})
		}
		at += f.Size
	}
	err = tasks.Wait()
	if file != nil && err == nil {
		err = errors.Join(file.Truncate(at), file.Sync())
	}
	return imagesResult{Took: time.Since(began)}, err
}

// get reads an object into a buffer that is large enough.
func get(ctx context.Context, client *http.Client, endpoint, name string, into []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, endpoint+"/"+bucketName+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK || res.ContentLength < 0 || res.ContentLength > int64(len(into)) {
		return nil, fmt.Errorf("%s: %s, %d bytes", name, res.Status, res.ContentLength)
	}
	into = into[:res.ContentLength]
	_, err = io.ReadFull(res.Body, into)
	return into, err
}

// manifestOf reads the manifest that a reference with a digest names.
func manifestOf(ctx context.Context, client *http.Client, endpoint, ref string) (*manifest.Manifest, error) {
	r, err := manifest.ParseReference(ref)
	if err != nil {
		return nil, err
	}
	b, err := get(ctx, client, endpoint, manifest.ManifestObject(r.Digest), make([]byte, 64<<20))
	if err != nil {
		return nil, err
	}
	return manifest.Parse(b)
}

// memoryOf returns what a process holds in memory now and held at most.
func memoryOf(pid string) (now, most int64) {
	for name, into := range map[string]*int64{"VmRSS": &now, "VmHWM": &most} {
		fmt.Sscanf(field(filepath.Join("/proc", pid, "status"), name), "%d kB", into) //nolint:errcheck // 0 where there is no /proc
		*into <<= 10
	}
	return now, most
}
