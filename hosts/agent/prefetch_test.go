// SPDX-License-Identifier: MIT

package agent_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/minifleet/minifleet/hosts/agent"
	"github.com/minifleet/minifleet/hosts/protocol"
)

// library is a host without VMs that has images.
type library struct {
	*machines

	mu     sync.Mutex // guards the rest
	images map[string]protocol.ImageReport
	errs   map[string]error         // of fetches, by digest
	gates  map[string]chan struct{} // a fetch waits for it, by digest
	begun  []string                 // digests, in the order of their fetches
	called []string                 // off
	limits []string                 // that were set
	held   []string
	holds  int
	now    int // fetches that go on
	most   int
}

func newLibrary(m *machines) *library {
	return &library{machines: m, images: map[string]protocol.ImageReport{}, errs: map[string]error{}, gates: map[string]chan struct{}{}}
}

// change does something under the lock.
func (l *library) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
}

func digestOf(n int) string { return fmt.Sprintf("sha256:%064x", n) }

func published(n int) string { return "gs://bucket/images/mac@" + digestOf(n) }

func prefetch(n int) protocol.Prefetch { return protocol.Prefetch{Image: published(n)} }

func (l *library) Prefetch(ctx context.Context, image string, bytesPerSecond int64) error {
	digest := image[strings.Index(image, "@")+1:]
	l.mu.Lock()
	gate, err := l.gates[digest], l.errs[digest]
	l.begun = append(l.begun, digest)
	l.now++
	l.most = max(l.most, l.now)
	r := protocol.ImageReport{Image: image, Digest: digest, State: protocol.ImageFetching, TotalBytes: 1000}
	l.images[digest] = r
	l.limits = append(l.limits, fmt.Sprintf("%s %d", digest[len(digest)-1:], bytesPerSecond))
	l.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	switch {
	case ctx.Err() != nil:
		l.called = append(l.called, digest)
		r.State = protocol.ImageWaiting
	case err != nil:
		r.State = protocol.ImageWaiting
	default:
		r.State, r.DoneBytes = protocol.ImageWhole, r.TotalBytes
	}
	l.images[digest] = r
	return err
}

func (l *library) LimitPrefetch(digest string, bytesPerSecond int64) {
	l.change(func() {
		l.limits = append(l.limits, fmt.Sprintf("%s %d", digest[len(digest)-1:], bytesPerSecond))
	})
}

func (l *library) HoldImages(digests []string) error {
	l.change(func() { l.held = digests; l.holds++ })
	return nil
}

func (l *library) CachedImages() []protocol.ImageReport {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.images))
}

func (l *library) Images(context.Context) ([]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for _, i := range l.images {
		if i.State == protocol.ImageWhole {
			out = append(out, i.Digest)
		}
	}
	slices.Sort(out)
	return out, nil
}

// state returns what is reported of an image. The caller holds mu of the controller.
func (c *controller) image(n int) (r protocol.ImageReport) {
	if len(c.reports) == 0 {
		return r
	}
	for _, i := range c.reports[len(c.reports)-1].Images {
		if i.Digest == digestOf(n) {
			return i
		}
	}
	return r
}

func (c *controller) wantImages(list ...protocol.Prefetch) {
	c.change(func() { c.words.Images = list; c.revision++ })
}

func (c *controller) awaitImage(n int, state string) (r protocol.ImageReport) {
	c.t.Helper()
	c.await(fmt.Sprintf("image %d %s", n, state), func() bool { r = c.image(n); return r.State == state })
	return r
}

// inLibrary is inWorld on a host with images.
func inLibrary(t *testing.T, setup func(*world, *library), test func(*world, *library)) {
	t.Helper()
	var l *library
	inWorld(t, func(w *world) {
		l = newLibrary(w.m)
		w.cfg.Machines = l
		if setup != nil {
			setup(w, l)
		}
	}, func(w *world) { test(w, l) })
}

func digests(ns ...int) (out []string) {
	for _, n := range ns {
		out = append(out, digestOf(n))
	}
	return out
}

func TestImagesAreFetchedInTheirOrder(t *testing.T) {
	inLibrary(t, nil, func(w *world, l *library) {
		w.c.wantImages(prefetch(3), prefetch(1), prefetch(2), protocol.Prefetch{Image: "by-hand"}, protocol.Prefetch{Image: "gs://bucket/x:latest"}, prefetch(1))
		for n := range 3 {
			w.c.awaitImage(n+1, protocol.ImageWhole)
		}
		w.c.await("the digests among the facts", func() bool {
			return slices.Equal(w.c.reports[len(w.c.reports)-1].Facts.Images, digests(1, 2, 3))
		})
		l.change(func() {
			if diff := cmp.Diff(digests(3, 1, 2), l.begun); diff != "" || l.most != 1 {
				t.Errorf("%d at once, in the order (-want +got):\n%s", l.most, diff)
			}
			if diff := cmp.Diff(digests(3, 1, 2), l.held); diff != "" {
				t.Errorf("held (-want +got):\n%s", diff)
			}
		})
	})
}

func TestAnImageThatIsWantedNoMore(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) { l.gates[digestOf(1)] = make(chan struct{}) }, func(w *world, l *library) {
		w.c.wantImages(prefetch(1), prefetch(2))
		w.c.awaitImage(1, protocol.ImageFetching)
		if r := w.c.awaitImage(2, protocol.ImageWaiting); r.Image != published(2) {
			t.Errorf("the next one is reported as %+v", r)
		}
		w.c.wantImages(prefetch(2))
		w.c.awaitImage(2, protocol.ImageWhole)
		l.change(func() {
			if diff := cmp.Diff(digests(1), l.called); diff != "" {
				t.Errorf("called off (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(digests(2), l.held); diff != "" {
				t.Errorf("held (-want +got):\n%s", diff)
			}
		})
	})
}

func TestHeldImagesAreNotBegun(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) { l.gates[digestOf(1)] = make(chan struct{}) }, func(w *world, l *library) {
		hold := prefetch(1)
		hold.Hold = true
		w.c.wantImages(hold, prefetch(2))
		w.c.awaitImage(2, protocol.ImageWhole)
		if r := w.c.awaitImage(1, protocol.ImageWaiting); r.Failure != "" {
			t.Errorf("%+v", r)
		}
		l.change(func() {
			if diff := cmp.Diff(digests(2), l.begun); diff != "" || !slices.Contains(l.held, digestOf(1)) {
				t.Errorf("held %v; begun (-want +got):\n%s", l.held, diff)
			}
		})
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageFetching)
		w.c.wantImages(hold) // the rollout stops in the middle
		w.c.awaitImage(1, protocol.ImageWaiting)
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageFetching)
		l.change(func() { close(l.gates[digestOf(1)]) })
		w.c.awaitImage(1, protocol.ImageWhole)
	})
}

func TestALimitChangesOnTheWay(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) { l.gates[digestOf(1)] = make(chan struct{}) }, func(w *world, l *library) {
		for _, limit := range []int64{100_000, 200_000, 0, -5, 7} {
			p := prefetch(1)
			p.BytesPerSecond = limit
			w.c.wantImages(p)
			w.c.awaitImage(1, protocol.ImageFetching)
			synctest.Wait()
		}
		l.change(func() {
			if diff := cmp.Diff([]string{"1 100000", "1 200000", "1 0", "1 65536"}, l.limits); diff != "" || len(l.begun) != 1 {
				t.Errorf("begun %d times; limits (-want +got):\n%s", len(l.begun), diff)
			}
			close(l.gates[digestOf(1)])
		})
		w.c.awaitImage(1, protocol.ImageWhole)
	})
}

func TestOneThatIsWantedMoreGoesFirst(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) {
		l.gates[digestOf(1)], l.gates[digestOf(2)] = make(chan struct{}), make(chan struct{})
	}, func(w *world, l *library) {
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageFetching)
		w.c.wantImages(prefetch(2), prefetch(1))
		w.c.awaitImage(2, protocol.ImageFetching)
		l.change(func() { close(l.gates[digestOf(1)]); close(l.gates[digestOf(2)]) })
		w.c.awaitImage(1, protocol.ImageWhole)
		l.change(func() {
			if diff := cmp.Diff(digests(1, 2, 1), l.begun); diff != "" || l.most != 1 {
				t.Errorf("%d at once (-want +got):\n%s", l.most, diff)
			}
		})
	})
}

func TestAnImageThatCannotBeFetched(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) { l.errs[digestOf(1)] = errors.New("access is denied") }, func(w *world, l *library) {
		w.c.wantImages(prefetch(1), prefetch(2))
		w.c.awaitImage(2, protocol.ImageWhole) // it does not wait for the one that fails
		r := w.c.awaitImage(1, protocol.ImageFailed)
		if r.Failure != "access is denied" || r.Image != published(1) {
			t.Errorf("%+v", r)
		}
		time.Sleep(3 * time.Hour) // in the bubble
		tries := 0
		l.change(func() {
			for _, d := range l.begun {
				if d == digestOf(1) {
					tries++
				}
			}
			delete(l.errs, digestOf(1))
		})
		if tries < 12 || tries > 60 {
			t.Errorf("%d attempts in three hours", tries)
		}
		if r := w.c.awaitImage(1, protocol.ImageWhole); r.Failure != "" {
			t.Errorf("%+v", r)
		}
	})
}

// TestProgressOfImagesIsReportedNowAndThen moves an image all the time.
func TestProgressOfImagesIsReportedNowAndThen(t *testing.T) {
	inLibrary(t, func(_ *world, l *library) { l.gates[digestOf(1)] = make(chan struct{}) }, func(w *world, l *library) {
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageFetching)
		synctest.Wait()
		count := func() (n int) {
			w.c.mu.Lock()
			defer w.c.mu.Unlock()
			return len(w.c.reports)
		}
		before := count()
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			l.change(func() {
				r := l.images[digestOf(1)]
				r.DoneBytes++
				l.images[digestOf(1)] = r
			})
		}
		if n := count() - before; n < 15 || n > 30 {
			t.Errorf("%d reports in a minute", n)
		}
		w.c.mu.Lock()
		done := w.c.image(1).DoneBytes
		w.c.mu.Unlock()
		if done < 500 {
			t.Errorf("%d of 600 were reported", done)
		}
		l.change(func() { close(l.gates[digestOf(1)]) })
		ended := time.Now()
		w.c.awaitImage(1, protocol.ImageWhole)
		if late := time.Since(ended); late > time.Second {
			t.Errorf("its end was reported after %s", late)
		}
	})
}

// TestNothingIsLetGoBeforeTheControllerSpeaks keeps what was held while the controller is
// silent.
func TestNothingIsLetGoBeforeTheControllerSpeaks(t *testing.T) {
	silent := true
	inLibrary(t, func(w *world, _ *library) {
		w.c.unkind = func(path string) unkindness {
			if silent && path == protocol.PathDesired {
				return unkindness{refuse: protocol.CodeUnavailable, status: 503}
			}
			return unkindness{}
		}
	}, func(w *world, l *library) {
		time.Sleep(time.Hour)
		l.change(func() {
			if l.holds != 0 {
				t.Errorf("%d calls to hold %v", l.holds, l.held)
			}
		})
		w.c.mu.Lock()
		silent = false
		w.c.mu.Unlock()
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageWhole)
	})
}

// TestAnEvictedImageIsFetchedAgain takes an image that is wanted off a host.
func TestAnEvictedImageIsFetchedAgain(t *testing.T) {
	inLibrary(t, nil, func(w *world, l *library) {
		w.c.wantImages(prefetch(1))
		w.c.awaitImage(1, protocol.ImageWhole)
		synctest.Wait()
		l.change(func() { clear(l.images) })
		w.c.await("another fetch", func() bool { l.mu.Lock(); defer l.mu.Unlock(); return len(l.begun) == 2 })
		w.c.awaitImage(1, protocol.ImageWhole)
	})
}

// TestSimulatedHostsFetchImages has what load tests need: images that take their time.
func TestSimulatedHostsFetchImages(t *testing.T) {
	inWorld(t, func(w *world) {
		machines, err := agent.NewSimulated(agent.SimulatedConfig{Images: []string{"by-hand"}, Fetch: time.Minute, Boot: time.Second, Job: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		w.cfg.Machines = machines
	}, func(w *world) {
		w.c.wantImages(prefetch(1))
		r := w.c.awaitImage(1, protocol.ImageFetching)
		w.c.await("progress", func() bool { r = w.c.image(1); return r.DoneBytes > 0 && r.State == protocol.ImageFetching })
		began := time.Now()
		want := up("a")
		want.Image = published(1)
		w.c.want(want)
		w.c.awaitObserved("a", "standby") // it joins
		if took := time.Since(began); took > time.Minute+10*time.Second {
			t.Errorf("it took %s", took)
		}
		w.c.await("the image among the facts", func() bool {
			return slices.Equal(w.c.reports[len(w.c.reports)-1].Facts.Images, []string{"by-hand", digestOf(1)})
		})
		want.ID, want.Image = "b", published(2)
		w.c.want(want) // this one begins it
		w.c.awaitObserved("b", "standby")
		w.c.awaitImage(2, protocol.ImageWhole)
	})
}
