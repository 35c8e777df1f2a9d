// SPDX-License-Identifier: MIT

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

func byTime(a, b receipt) int { return a.At.Compare(b.At) }

// play is GitHub's part while simulated hosts run jobs: it keeps so many queued, gives
// the oldest to the runner that takes one, and says when it is completed.
type play struct {
	*site
	hostCount, total int

	mu      sync.Mutex // guards the rest
	queue   []int64
	last    int64
	running map[string]int64 // by runner
	ended   int
	err     error
	done    chan struct{}
}

func (p *play) fail(err error) {
	if p.err == nil && p.ended < p.total {
		p.err = err
		close(p.done)
	}
}

// add queues one more job. The caller holds mu.
func (p *play) add() {
	if p.last >= int64(p.total) {
		return
	}
	p.last++
	job := p.last
	p.queue = append(p.queue, job)
	p.says.Go(func() { p.say(news{job: job, action: "queued", labels: poolLabels()}) })
}

func (p *play) say(n news) {
	if _, err := p.tell(n); err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.fail(err)
	}
}

// heard is told of each step of each VM.
func (p *play) heard(r receipt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch r.Step {
	case "busy":
		if len(p.queue) == 0 {
			return // the site has one runner more than jobs: it is told to end
		}
		job := p.queue[0]
		p.queue = p.queue[1:]
		p.running[r.Runner] = job
		p.says.Go(func() { p.say(news{job: job, action: "in_progress", labels: poolLabels(), runner: r.Name}) })
	case "finished":
		job, ok := p.running[r.Runner]
		if !ok {
			return
		}
		delete(p.running, r.Runner)
		p.says.Go(func() { p.say(news{job: job, action: "completed", labels: poolLabels(), runner: r.Name}) })
		p.ended++
		p.add()
		if p.ended == p.total {
			close(p.done)
		}
	}
}

// weight is what the controller holds at one moment.
type weight struct {
	jobs                    int
	memory                  int64
	descriptors, goroutines int
	database                int64
}

func (w weight) String() string {
	return fmt.Sprintf("%s, %d descriptors, %d goroutines, database %s", mib(w.memory), w.descriptors, w.goroutines, mib(w.database))
}

func (p *play) weigh(ctx context.Context) (weight, error) {
	p.mu.Lock()
	w := weight{jobs: p.ended}
	p.mu.Unlock()
	var err error
	w.memory, _ = p.controller.memory()
	w.descriptors = p.controller.descriptors()
	w.database = p.databaseSize()
	w.goroutines, err = p.goroutines(ctx)
	return w, err
}

func (s *site) databaseSize() (size int64) {
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(filepath.Join(s.dir, "minifleet.db"+suffix)); err == nil {
			size += info.Size()
		}
	}
	return size
}

// measureLong runs jobs from their first delivery to the end of their VM: some to see what
// a job leaves in the database, and many, with a history that is soon forgotten, to compare
// the controller early and late.
func measureLong(ctx context.Context, b *bencher) error {
	if err := b.footprint(ctx); err != nil {
		return err
	}
	s, err := newSite(ctx, b, siteOf{name: "long", settings: "keep_history: 5s\nkeep_payloads: 3s\n", timing: ", prune: 1s"})
	if err != nil {
		return err
	}
	defer s.close()
	p, err := s.play(ctx, b.of(50), b.of(10000))
	if err != nil {
		return err
	}
	began, cpu := time.Now(), s.controller.cpu()
	profiled := s.profile(ctx, "long", 20)
	var marks []weight
	if err := p.run(ctx, func(w weight) {
		if w.jobs >= (len(marks)+1)*p.total/5 {
			marks = append(marks, w)
			b.note(fmt.Sprintf("  after %d jobs", w.jobs), w.String())
		}
	}); err != nil {
		return err
	}
	took := time.Since(began)
	b.note(fmt.Sprintf("%d jobs in a row", p.total), fmt.Sprintf("%s: %.0f/s, %.1f ms of the controller's CPU for one", took.Round(time.Second),
		float64(p.total)/took.Seconds(), float64(s.controller.cpu()-cpu)/1e6/float64(p.total)))
	if err := profiled(); err != nil {
		return err
	}
	early, late := marks[min(1, len(marks)-1)], marks[len(marks)-1] // by then the first are forgotten
	flat := func(what string, from, to int64, text func(int64) string) {
		b.limit("  "+what+", second fifth to last", "flat: < 1.5 times", text(from)+" to "+text(to), to < from*3/2)
	}
	number := func(n int64) string { return fmt.Sprint(n) }
	flat("memory", early.memory, late.memory, mib)
	flat("descriptors", int64(early.descriptors), int64(late.descriptors), number)
	flat("goroutines", int64(early.goroutines), int64(late.goroutines), number)
	flat("database (retention 5 s)", early.database, late.database, mib)
	return nil
}

// footprint is what a job leaves in the database while its history is kept.
func (b *bencher) footprint(ctx context.Context) error {
	s, err := newSite(ctx, b, siteOf{name: "footprint"})
	if err != nil {
		return err
	}
	defer s.close()
	p, err := s.play(ctx, b.of(50), b.of(1000))
	if err != nil {
		return err
	}
	before := s.databaseSize()
	if err := p.run(ctx, func(weight) {}); err != nil {
		return err
	}
	b.note("database for one job, its payloads kept", fmt.Sprintf("%.1f KiB (%d jobs of three deliveries)", float64(s.databaseSize()-before)/1024/float64(p.total), p.total))
	return nil
}

// play begins with simulated hosts and no jobs.
func (s *site) play(ctx context.Context, hosts, total int) (*play, error) {
	p := &play{site: s, hostCount: hosts, total: total, running: map[string]int64{}, done: make(chan struct{})}
	return p, s.simulate(ctx, hosts, 2, "--boot", "5ms", "--register", "5ms", "--idle", "5ms", "--job", "20ms", "--stop", "1ms")
}

// run plays until all jobs have ended, and looks at the controller now and then.
func (p *play) run(ctx context.Context, look func(weight)) error {
	p.receipts.mu.Lock()
	p.receipts.on = p.heard
	p.receipts.mu.Unlock()
	p.mu.Lock()
	for range min(2*p.hostCount, p.total) {
		p.add()
	}
	p.mu.Unlock()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Minute, errors.New("the jobs do not come to an end"))
	defer cancel()
	for over := false; !over; {
		select {
		case <-p.done:
			over = true
		case <-tick.C:
		case <-ctx.Done():
			return p.failed(context.Cause(ctx))
		}
		w, err := p.weigh(ctx)
		if err != nil {
			return p.failed(err)
		}
		look(w)
	}
	return p.failed(p.err)
}
