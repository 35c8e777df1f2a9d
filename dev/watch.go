// SPDX-License-Identifier: MIT

package dev

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/minifleet/minifleet/githubapp/githubsim"
)

// say prints a line; on a terminal the live table is drawn again below it.
func (s *site) say(format string, args ...any) {
	s.lines <- fmt.Sprintf(format, args...)
}

// watch shows the jobs as they go: a table on a terminal, one line for each change
// elsewhere.
func (s *site) watch(ctx context.Context, began time.Time) error {
	states := make(chan []githubsim.Job)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.follow(ctx, states)
	}()
	show := display{site: s, began: began, known: map[int64]string{}}
	for {
		select {
		case <-ctx.Done():
			<-ended
			s.last(context.WithoutCancel(ctx), &show)
			show.finish()
			return nil
		case line := <-s.lines:
			show.line(line)
		case jobs := <-states:
			show.jobs(jobs)
		}
	}
}

// last shows what has come since the last look.
func (s *site) last(ctx context.Context, show *display) {
	for len(s.lines) > 0 {
		show.line(<-s.lines)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if jobs, err := s.sim.Jobs(ctx); err == nil { // whoever accounts for them asks for them too, and tells of errors
		show.jobs(jobs)
	}
}

// follow reads the jobs at every change, ten times a second at most.
func (s *site) follow(ctx context.Context, to chan<- []githubsim.Job) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var since uint64
	for ctx.Err() == nil {
		next, err := s.sim.Wait(ctx, since, 5*time.Second)
		if err == nil && next != since {
			since = next
			if jobs, err := s.sim.Jobs(ctx); err == nil {
				select {
				case to <- jobs:
				case <-ctx.Done():
				}
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// display draws.
type display struct {
	site  *site
	began time.Time
	known map[int64]string // what was shown of each job
	last  []githubsim.Job
	drawn int // lines of the table on the screen
}

func (d *display) line(text string) {
	d.erase()
	fmt.Fprintf(d.site.Out, "%6.1f s  %s\n", time.Since(d.began).Seconds(), text)
	d.draw()
}

func (d *display) jobs(jobs []githubsim.Job) {
	d.last = jobs
	if d.site.Terminal {
		d.erase()
		d.draw()
		return
	}
	for _, j := range jobs {
		text := describe(j)
		if d.known[j.ID] != text {
			d.known[j.ID] = text
			d.line(fmt.Sprintf("%-24s %s", j.Name, text))
		}
	}
}

func describe(j githubsim.Job) string {
	switch {
	case j.Done() && j.RunnerName != "":
		return fmt.Sprintf("%s on %s after %.1f s", j.Conclusion, j.RunnerName, j.DoneAt.Sub(j.StartedAt).Seconds())
	case j.Done():
		return j.Conclusion + " before any runner had it"
	case j.Running():
		return "running on " + j.RunnerName
	default:
		return j.Status
	}
}

func (d *display) erase() {
	if d.drawn > 0 {
		fmt.Fprintf(d.site.Out, "\x1b[%dA\x1b[J", d.drawn)
		d.drawn = 0
	}
}

// draw shows what runs, line by line, and the rest as counts, so that the table
// fits any screen.
func (d *display) draw() {
	if !d.site.Terminal || len(d.last) == 0 {
		return
	}
	counts := map[string]int{}
	var b strings.Builder
	for _, j := range d.last {
		switch {
		case j.Done():
			counts[j.Conclusion]++
		case j.Running():
			counts["running"]++
			fmt.Fprintf(&b, "  %-24s %5.1f s  %s\n", j.Name, time.Since(j.StartedAt).Seconds(), j.RunnerName)
			d.drawn++
		default:
			counts["queued"]++
		}
	}
	fmt.Fprintf(d.site.Out, "%6.1f s  %d queued, %d running, %d succeeded, %d failed, %d cancelled\n%s", time.Since(d.began).Seconds(),
		counts["queued"], counts["running"], counts["success"], counts["failure"], counts["cancelled"], b.String())
	d.drawn++
}

func (d *display) finish() { d.erase() }
