// SPDX-License-Identifier: MIT

package emulator_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"cloud.google.com/go/storage"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/option"

	"github.com/minifleet/minifleet/e2e/emulator"
)

func start(t *testing.T, o emulator.Options) (*emulator.Server, *storage.BucketHandle) {
	t.Helper()
	o.Buckets = []string{"images"}
	s, err := emulator.Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	c, err := storage.NewClient(t.Context(), option.WithEndpoint(s.URL+"/storage/v1/"), option.WithHTTPClient(&http.Client{Transport: transport}),
		option.WithoutAuthentication(), // or it asks the cloud that the test may run in who it is
		storage.WithJSONReads(), storage.WithDisabledClientMetrics())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetRetry(storage.WithPolicy(storage.RetryNever))
	return s, c.Bucket("images")
}

func write(t *testing.T, o *storage.ObjectHandle, content []byte) error {
	t.Helper()
	w := o.NewWriter(t.Context())
	w.ChunkSize = 0
	_, err := w.Write(content)
	return errors.Join(err, w.Close())
}

func code(err error) int {
	if e, ok := errors.AsType[*googleapi.Error](err); ok {
		return e.Code
	}
	return 0
}

// Metadata changes raise the metageneration and leave the generation, and a deletion under
// an older one is refused, in memory and on a disk.
func TestMetagenerations(t *testing.T) {
	for name, dir := range map[string]string{"memory": "", "disk": t.TempDir()} {
		t.Run(name, func(t *testing.T) {
			s, bucket := start(t, emulator.Options{Dir: dir})
			o := bucket.Object("chunks/ab/abc.zst")
			if err := write(t, o.If(storage.Conditions{DoesNotExist: true}), []byte("content")); err != nil {
				t.Fatal(err)
			}
			if err := write(t, o.If(storage.Conditions{DoesNotExist: true}), []byte("content")); code(err) != http.StatusPreconditionFailed {
				t.Errorf("a second creation: %v", err)
			}
			before, err := o.Attrs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			after, err := o.If(storage.Conditions{MetagenerationMatch: before.Metageneration}).Update(t.Context(), storage.ObjectAttrsToUpdate{Metadata: map[string]string{"touched": "1"}})
			if err != nil {
				t.Fatal(err)
			}
			if after.Generation != before.Generation || after.Metageneration != before.Metageneration+1 || !after.Updated.After(before.Updated.Add(-time.Second)) {
				t.Errorf("before %d.%d, after %d.%d", before.Generation, before.Metageneration, after.Generation, after.Metageneration)
			}
			list := bucket.Objects(t.Context(), &storage.Query{Prefix: "chunks/"})
			if one, err := list.Next(); err != nil || one.Metageneration != after.Metageneration || one.Metadata["touched"] != "1" {
				t.Errorf("listed: %+v %v", one, err)
			}
			if err := o.If(storage.Conditions{MetagenerationMatch: before.Metageneration}).Delete(t.Context()); code(err) != http.StatusPreconditionFailed {
				t.Errorf("a deletion under the old metageneration: %v", err)
			}
			r, err := o.NewReader(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(r); err != nil || string(b) != "content" {
				t.Errorf("read %q, %v", b, err)
			}
			r.Close()
			if err := o.If(storage.Conditions{GenerationMatch: after.Generation, MetagenerationMatch: after.Metageneration}).Delete(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := o.Attrs(t.Context()); !errors.Is(err, storage.ErrObjectNotExist) {
				t.Errorf("deleted: %v", err)
			}
			if err := write(t, o, []byte("anew")); err != nil {
				t.Fatal(err)
			}
			fresh, err := o.Attrs(t.Context())
			if err != nil || fresh.Metageneration != 1 {
				t.Errorf("a new generation begins at %+v, %v", fresh, err)
			}
			s.Age(time.Hour)
			if err := write(t, bucket.Object("chunks/ab/young.zst"), []byte("content")); err != nil {
				t.Fatal(err)
			}
			for name, age := range map[string]time.Duration{"abc.zst": time.Hour, "young.zst": 0} {
				list := bucket.Objects(t.Context(), &storage.Query{Prefix: "chunks/ab/" + name})
				if a, err := list.Next(); err != nil || a.Updated.Sub(fresh.Updated.Add(-age)).Abs() > time.Minute {
					t.Errorf("%s: %+v, %v; it was written at %s and is %s older", name, a, err, fresh.Updated, age)
				}
			}
			if n := s.Objects("images", "chunks/"); n != 2 {
				t.Errorf("%d objects", n)
			}
		})
	}
}

// Each fault is what it says, strikes as often as it is told to, and is over when cleared.
func TestFaults(t *testing.T) {
	s, bucket := start(t, emulator.Options{})
	content := bytes.Repeat([]byte("a chunk of it"), 10_000)
	o := bucket.Object("chunk")
	if err := write(t, o, content); err != nil {
		t.Fatal(err)
	}
	read := func(ctx context.Context) ([]byte, error) {
		res, err := http.DefaultClient.Do(request(ctx, t, s.URL+"/storage/v1/b/images/o/chunk?alt=media"))
		if err != nil {
			return nil, err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if res.StatusCode != http.StatusOK {
			return b, &googleapi.Error{Code: res.StatusCode}
		}
		return b, err
	}
	defer http.DefaultClient.CloseIdleConnections()
	for _, c := range []struct {
		name  string
		fault emulator.Fault
		as    func([]byte, error) bool
	}{
		{"status", emulator.Fault{Kind: emulator.Status, Status: 503}, func(_ []byte, err error) bool { return code(err) == 503 }},
		{"vanished", emulator.Fault{Kind: emulator.Vanished}, func(_ []byte, err error) bool { return code(err) == 404 }},
		{"cut", emulator.Fault{Kind: emulator.Cut}, func(b []byte, err error) bool { return err != nil && len(b) == len(content)/2 }},
		{"garbage", emulator.Fault{Kind: emulator.Garbage}, func(b []byte, err error) bool {
			return err == nil && len(b) == len(content) && !bytes.Equal(b, content)
		}},
		{"shorter", emulator.Fault{Kind: emulator.Shorter}, func(b []byte, err error) bool { return err == nil && len(b) == len(content)/2 }},
		{"longer", emulator.Fault{Kind: emulator.Longer}, func(b []byte, err error) bool { return err == nil && len(b) == 2*len(content) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := s.Faults.Struck(c.fault.Kind)
			c.fault.Count, c.fault.Part, c.fault.Method = 1, "/chunk", http.MethodGet
			s.Faults.Add(c.fault)
			if b, err := read(t.Context()); !c.as(b, err) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if b, err := read(t.Context()); err != nil || !bytes.Equal(b, content) {
				t.Errorf("after it: %d bytes, %v", len(b), err)
			}
			if n := s.Faults.Struck(c.fault.Kind) - before; n != 1 {
				t.Errorf("struck %d times", n)
			}
		})
	}
	t.Run("stall", func(t *testing.T) {
		s.Faults.Add(emulator.Fault{Kind: emulator.Stall})
		ended := make(chan error, 1)
		go func() {
			_, err := read(t.Context())
			ended <- err
		}()
		if err := s.Faults.Await(t.Context(), emulator.Stall, 1); err != nil {
			t.Fatal(err)
		}
		s.Faults.Clear()
		if err := <-ended; err == nil {
			t.Error("a stalled answer came to its end")
		}
		if b, err := read(t.Context()); err != nil || !bytes.Equal(b, content) {
			t.Errorf("after it: %d bytes, %v", len(b), err)
		}
	})
}

func request(ctx context.Context, t *testing.T, url string) *http.Request {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close = true // a connection that is to be idle may not be yet when the test ends
	return r
}

// A limited line is as slow as it says, all connections together, and counts what it
// carries.
func TestLine(t *testing.T) {
	s, bucket := start(t, emulator.Options{})
	const size = 1 << 20
	if err := write(t, bucket.Object("chunk"), make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	s.Limit(20 << 20)
	before, began := s.Sent(), time.Now()
	ended := make(chan error, 4)
	for range cap(ended) {
		go func() {
			res, err := http.DefaultClient.Do(request(t.Context(), t, s.URL+"/storage/v1/b/images/o/chunk?alt=media"))
			if err == nil {
				_, err = io.Copy(io.Discard, res.Body)
				res.Body.Close()
			}
			ended <- err
		}()
	}
	for range cap(ended) {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	took, sent := time.Since(began), s.Sent()-before
	if sent < 4*size || sent > 4*size+8<<10 {
		t.Errorf("it counts %d bytes", sent)
	}
	if least := 190 * time.Millisecond; took < least {
		t.Errorf("4 MiB over a line of 20 MiB/s took %s, want at least %s", took, least)
	}
	if n := s.Asked(http.MethodGet, "/o/chunk"); n != cap(ended) {
		t.Errorf("it counts %d requests", n)
	}
}
