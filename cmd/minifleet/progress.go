// SPDX-License-Identifier: MIT

package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/minifleet/minifleet/imagecache/publish"
)

// How often progress is shown: a bar on a terminal, lines elsewhere.
const (
	redrawEvery  = 200 * time.Millisecond
	lineEvery    = 5 * time.Second
	linePercents = 5
)

// progress shows how far a command has come: on a terminal by one line that is drawn anew,
// elsewhere by a line at each 5 %, and every few seconds.
type progress struct {
	out      io.Writer
	terminal bool
	columns  func() int
	stop     chan struct{}
	stopped  sync.WaitGroup

	mu    sync.Mutex // guards the rest, and orders what is written
	now   publish.Progress
	began time.Time // what is being done now
	shown time.Time // the last line
	part  int64     // of the last line, in steps of 5 %
	drawn bool      // there is a bar to be erased
	recent
}

func newProgress(out io.Writer, terminal bool, columns func() int) *progress {
	p := &progress{out: out, terminal: terminal, columns: columns, stop: make(chan struct{})}
	p.stopped.Go(func() {
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.tick()
			case <-p.stop:
				return
			}
		}
	})
	return p
}

// set takes news. It may be called as often as one likes.
func (p *progress) set(now publish.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Doing != p.now.Doing {
		p.erase()
		p.began, p.shown, p.part, p.recent = time.Now(), time.Now(), 0, recent{}
	}
	p.now = now
}

// end erases the bar. Nothing is shown any more.
func (p *progress) end() {
	close(p.stop)
	p.stopped.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.erase()
}

func (p *progress) erase() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}

func (p *progress) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.now.Doing == "" || p.now.Total <= 0 {
		return
	}
	now := time.Now()
	p.sample(now, p.now.Done)
	if p.terminal {
		fmt.Fprint(p.out, "\r"+p.bar()+"\x1b[K")
		p.drawn = true
		return
	}
	part := p.now.Done * (100 / linePercents) / p.now.Total
	if now.Sub(p.shown) >= lineEvery || part > p.part && now.Sub(p.shown) >= time.Second {
		p.shown, p.part = now, part
		fmt.Fprintln(p.out, p.text())
	}
}

// text is what a line says.
func (p *progress) text() string {
	percent := min(100, p.now.Done*100/p.now.Total)
	text := fmt.Sprintf("%s %3d %%  %s of %s", p.now.Doing, percent, size(p.now.Done), size(p.now.Total))
	if p.now.Sent > 0 {
		text += fmt.Sprintf(", %s sent", size(p.now.Sent))
	}
	if rate := p.rate(); rate > 0 {
		text += fmt.Sprintf(", %s/s", size(int64(rate)))
		if left := p.now.Total - p.now.Done; left > 0 {
			text += ", " + remaining(time.Duration(float64(left)/rate*float64(time.Second))) + " left"
		}
	}
	return text
}

// bar is the text, and a bar where there is room for one.
func (p *progress) bar() string {
	text := p.text()
	width := p.columns() - 1
	if room := min(30, width-len(text)-4); room >= 8 {
		full := int(min(p.now.Done, p.now.Total) * int64(room) / p.now.Total)
		text += "  [" + strings.Repeat("#", full) + strings.Repeat("-", room-full) + "]"
	}
	return text[:min(len(text), max(width, 0))]
}

// recent is what was done in the last seconds, from which a rate follows.
type recent struct {
	at   [32]time.Time
	done [32]int64
	n    int
}

func (r *recent) sample(now time.Time, done int64) {
	r.at[r.n%len(r.at)], r.done[r.n%len(r.at)] = now, done
	r.n++
}

// rate is the bytes a second over the samples; 0 if that is not known.
func (r *recent) rate() float64 {
	if r.n < 2 {
		return 0
	}
	first, last := max(0, r.n-len(r.at))%len(r.at), (r.n-1)%len(r.at)
	d := r.at[last].Sub(r.at[first])
	if d <= 0 {
		return 0
	}
	return float64(r.done[last]-r.done[first]) / d.Seconds()
}

// remaining is a time to come, no more exact than it is known.
func remaining(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", max(1, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()+0.5))
	default:
		return fmt.Sprintf("%.1f h", min(d.Hours(), 1000))
	}
}

// size is a number of bytes for people.
func size(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.0f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	default:
		return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30))
	}
}

// columns is how wide a terminal is, asked each time.
func columns(w io.Writer) func() int {
	return func() int {
		if f, ok := w.(*os.File); ok {
			if ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && ws.Col > 0 {
				return int(ws.Col)
			}
		}
		return 80
	}
}
