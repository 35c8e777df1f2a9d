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
	total int

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
	go p.say(news{job: job, action: "queued", labels: poolLabels()})
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
		go p.say(news{job: job, action: "in_progress", labels: poolLabels(), runner: r.Name})
	case "finished":
		job, ok := p.running[r.Runner]
		if !ok {
			return
		}
		delete(p.running, r.Runner)
		go p.say(news{job: job, action: "completed", labels: poolLabels(), runner: r.Name})
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

// measureLong runs many jobs one after the other on a fleet that is always busy, with a
// history that is soon forgotten, and compares the controller early and late.
func measureLong(ctx context.Context, b *bencher) error {
	s, err := newSite(ctx, b, "long", "keep_history: 30s\nkeep_payloads: 10s\nprune: 5s\n", 0)
	if err != nil {
		return err
	}
	defer s.close()
	hosts := b.of(50)
	if err := s.simulate(ctx, hosts, 2, "--boot", "5ms", "--register", "5ms", "--idle", "5ms", "--job", "20ms", "--stop", "1ms"); err != nil {
		return err
	}
	p := &play{site: s, total: b.of(10000), running: map[string]int64{}, done: make(chan struct{})}
	s.receipts.mu.Lock()
	s.receipts.on = p.heard
	s.receipts.mu.Unlock()
	began, cpu := time.Now(), s.controller.cpu()
	p.mu.Lock()
	for range min(2*hosts, p.total) {
		p.add()
	}
	p.mu.Unlock()
	profiled := s.profile(ctx, "long", 20)
	var marks []weight
	for over := false; !over; {
		select {
		case <-p.done:
			over = true
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Second):
		}
		w, err := p.weigh(ctx)
		if err != nil {
			return err
		}
		if over || w.jobs >= (len(marks)+1)*p.total/5 {
			marks = append(marks, w)
			b.note(fmt.Sprintf("  after %d jobs", w.jobs), w.String())
		}
		if time.Since(began) > 10*time.Minute {
			return s.failed(errors.New("the jobs do not come to an end"))
		}
	}
	if p.err != nil {
		return s.failed(p.err)
	}
	took := time.Since(began)
	b.note("jobs in a row", fmt.Sprintf("%d in %s: %.0f/s, %.1f ms of the controller's CPU for one", p.total, took.Round(time.Second),
		float64(p.total)/took.Seconds(), float64(s.controller.cpu()-cpu)/1e6/float64(p.total)))
	if err := profiled(); err != nil {
		return err
	}
	early, late := marks[0], marks[len(marks)-1]
	b.limit("  memory, first fifth to last", "flat: < 1.5 times", mib(early.memory)+" to "+mib(late.memory), late.memory < early.memory*3/2)
	b.limit("  descriptors", "flat: < 1.5 times", fmt.Sprintf("%d to %d", early.descriptors, late.descriptors), late.descriptors < early.descriptors*3/2)
	b.limit("  goroutines", "flat: < 1.5 times", fmt.Sprintf("%d to %d", early.goroutines, late.goroutines), late.goroutines < early.goroutines*3/2)
	return nil
}
