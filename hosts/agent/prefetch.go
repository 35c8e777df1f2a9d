// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/hosts/protocol"
	"github.com/minifleet/minifleet/imagecache/manifest"
)

// ImageStore is what Machines are besides whose images are fetched from elsewhere.
type ImageStore interface {
	// Prefetch fetches an image that nobody waits for, no faster than so many bytes per
	// second (0: no limit), and returns when it is whole, or when ctx ends.
	Prefetch(ctx context.Context, image string, bytesPerSecond int64) error
	// LimitPrefetch changes the limit of the one that is under way.
	LimitPrefetch(digest string, bytesPerSecond int64)
	// HoldImages keeps images from being evicted, those of these digests and no others,
	// until the next call and beyond the end of this process.
	HoldImages(digests []string) error
	// CachedImages tells of all images that were fetched, or are being.
	CachedImages() []protocol.ImageReport
}

// imagesProgress bounds how often the progress of images alone makes a report.
const imagesProgress = 3 * time.Second

// Pauses after an image that could not be fetched: a bucket that refuses does so for long.
const (
	prefetchFirstWait = 10 * time.Second
	prefetchMostWait  = 15 * time.Minute
)

// minPrefetchRate is the lowest limit that is kept: with a lower one what a chunk waits for
// already would take long even after the limit is lifted.
const minPrefetchRate = 64 << 10

// errNotWanted is the cause with which the fetching of an image is called off.
var errNotWanted = errors.New("the image is not to be fetched now")

// prefetches brings the images that the controller wants on this host before any VM needs
// them: one at a time, the most wanted first.
type prefetches struct {
	agent *Agent
	store ImageStore
	wake  chan struct{} // holds one token while there is something to look at

	mu     sync.Mutex // guards the rest
	known  bool       // the controller has said what it wants, in this agent's life
	wants  []wantedImage
	report []protocol.ImageReport // as it was last looked at

	// Only of run.
	failed map[string]*failedImage // by digest
}

// wantedImage is a Prefetch that makes sense.
type wantedImage struct {
	protocol.Prefetch
	digest string
}

// failedImage is one that could not be fetched.
type failedImage struct {
	text  string
	pause backoff
	until time.Time
}

func newPrefetches(a *Agent, store ImageStore) *prefetches {
	return &prefetches{agent: a, store: store, wake: make(chan struct{}, 1), failed: map[string]*failedImage{}}
}

// want takes in what the controller wants, in its order. What names no version of an image is
// left out: it could not be reported.
func (p *prefetches) want(list []protocol.Prefetch) {
	if p == nil {
		return
	}
	wants := make([]wantedImage, 0, len(list))
	seen := map[string]bool{}
	for _, w := range list[:min(len(list), protocol.MaxImages)] {
		ref, err := manifest.ParseReference(w.Image)
		if err != nil || !ref.Remote() || ref.Digest == "" || seen[ref.Digest] {
			continue
		}
		seen[ref.Digest] = true
		if w.BytesPerSecond = max(0, w.BytesPerSecond); w.BytesPerSecond > 0 {
			w.BytesPerSecond = max(w.BytesPerSecond, minPrefetchRate)
		}
		wants = append(wants, wantedImage{w, ref.Digest})
	}
	p.mu.Lock()
	same := p.known && slices.Equal(p.wants, wants)
	p.known, p.wants = true, wants
	p.mu.Unlock()
	if !same {
		p.look()
	}
}

// look has it look at the images soon.
func (p *prefetches) look() {
	if p == nil {
		return
	}
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// images returns what is reported of them.
func (p *prefetches) images() []protocol.ImageReport {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.report
}

// fetch is the image that is being fetched.
type fetch struct {
	wantedImage
	cancel context.CancelCauseFunc
	done   chan error // gets one
}

// run fetches until ctx ends.
func (p *prefetches) run(ctx context.Context) {
	var now *fetch
	defer func() { p.stop(now) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for woken := false; ; {
		next, busy := p.step(ctx, &now)
		if woken || busy {
			next = min(next, imagesProgress)
		}
		timer.Reset(next)
		var done chan error
		if now != nil {
			done = now.done
		}
		woken = false
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-p.wake:
			woken = true
		case err := <-done:
			p.ended(now, err)
			now, woken = nil, true
		}
	}
}

// step does what is due, and returns how long to wait for the next. busy says that some
// image moves.
func (p *prefetches) step(ctx context.Context, now **fetch) (next time.Duration, busy bool) {
	p.mu.Lock()
	known, wants := p.known, p.wants
	p.mu.Unlock()
	if known {
		p.hold(wants)
		*now = p.keep(*now, wants)
	}
	states := map[string]string{}
	for _, i := range p.store.CachedImages() {
		states[i.Digest] = i.State
	}
	next = around(p.agent.cfg.ImagesEvery)
	for i, w := range wants {
		if w.Hold || states[w.digest] == protocol.ImageWhole {
			delete(p.failed, w.digest)
			continue
		}
		f := p.failed[w.digest]
		if f != nil && time.Until(f.until) > 0 {
			next = min(next, time.Until(f.until))
			continue
		}
		if *now != nil && ((*now).digest == w.digest || f != nil || i > index(wants, (*now).digest)) {
			continue
		}
		p.stop(*now) // this one is wanted more, and was not tried
		*now = p.start(ctx, w)
	}
	for digest := range p.failed {
		if index(wants, digest) < 0 {
			delete(p.failed, digest)
		}
	}
	return next, p.refresh(wants) || *now != nil
}

func index(wants []wantedImage, digest string) int {
	return slices.IndexFunc(wants, func(w wantedImage) bool { return w.digest == digest })
}

// hold keeps what is wanted from being evicted: it would be fetched again.
func (p *prefetches) hold(wants []wantedImage) {
	var digests []string
	for _, w := range wants {
		digests = append(digests, w.digest)
	}
	text := ""
	if err := p.store.HoldImages(digests); err != nil {
		text = "the images that are wanted here cannot be kept from eviction: " + err.Error()
	}
	p.agent.trouble("held images", text)
}

// keep calls off the fetch of an image that is not wanted any more, and has the limit that
// is wanted.
func (p *prefetches) keep(now *fetch, wants []wantedImage) *fetch {
	if now == nil {
		return nil
	}
	i := index(wants, now.digest)
	if i < 0 || wants[i].Hold {
		p.stop(now)
		return nil
	}
	if now.BytesPerSecond != wants[i].BytesPerSecond {
		now.BytesPerSecond = wants[i].BytesPerSecond
		p.store.LimitPrefetch(now.digest, now.BytesPerSecond)
	}
	return now
}

func (p *prefetches) start(ctx context.Context, w wantedImage) *fetch {
	ctx, cancel := context.WithCancelCause(ctx)
	f := &fetch{wantedImage: w, cancel: cancel, done: make(chan error, 1)}
	p.agent.log.Info("an image is fetched that is wanted on this host", slog.String("image", w.Image), slog.Int64("bytes_per_second", w.BytesPerSecond))
	go func() { f.done <- p.store.Prefetch(ctx, w.Image, w.BytesPerSecond) }()
	return f
}

// stop calls a fetch off and waits for its end.
func (p *prefetches) stop(f *fetch) {
	if f == nil {
		return
	}
	f.cancel(errNotWanted)
	<-f.done //nolint:errcheck // why it ended is known
}

// ended takes in how a fetch ended by itself.
func (p *prefetches) ended(f *fetch, err error) {
	f.cancel(nil)
	if err == nil {
		delete(p.failed, f.digest)
		return
	}
	known := p.failed[f.digest]
	if known == nil {
		known = &failedImage{pause: backoff{first: prefetchFirstWait, most: prefetchMostWait}}
		p.failed[f.digest] = known
	}
	known.text = cut(err.Error(), protocol.MaxText)
	wait := known.pause.next()
	known.until = time.Now().Add(wait)
	p.agent.log.Warn("an image that is wanted on this host could not be fetched; it is tried again",
		slog.String("image", f.Image), slog.Duration("pause", wait), slog.Any("error", err))
}

// refresh looks at the images, and has them reported if they have changed: at once if
// one has another state, and else as often as it is called. busy says that one is moving.
func (p *prefetches) refresh(wants []wantedImage) (busy bool) {
	report := p.merge(p.store.CachedImages(), wants)
	for i := range report {
		busy = busy || report[i].State == protocol.ImageFetching
	}
	p.mu.Lock()
	before := p.report
	p.report = report
	p.mu.Unlock()
	if !slices.Equal(before, report) {
		p.agent.changed()
	}
	if !slices.EqualFunc(before, report, func(a, b protocol.ImageReport) bool { return a.Digest == b.Digest && a.State == b.State }) {
		p.agent.lookAtImages()
	}
	return busy
}

// merge adds to what the store knows what it cannot: what is wanted and not begun, and why
// the last attempt failed.
func (p *prefetches) merge(list []protocol.ImageReport, wants []wantedImage) []protocol.ImageReport {
	for _, w := range wants {
		if !slices.ContainsFunc(list, func(i protocol.ImageReport) bool { return i.Digest == w.digest }) {
			list = append(list, protocol.ImageReport{Image: w.Image, Digest: w.digest, State: protocol.ImageWaiting})
		}
	}
	for i := range list {
		e := &list[i]
		if f := p.failed[e.Digest]; f != nil && e.State == protocol.ImageWaiting {
			e.State, e.Failure = protocol.ImageFailed, f.text
		}
		e.Image, e.Failure = cut(e.Image, protocol.MaxText), cut(e.Failure, protocol.MaxText)
	}
	slices.SortFunc(list, func(a, b protocol.ImageReport) int { return cmp.Compare(a.Digest, b.Digest) })
	return list[:min(len(list), protocol.MaxImages)]
}
