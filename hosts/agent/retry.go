// SPDX-License-Identifier: MIT

package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// backoff gives growing, fully random pauses between attempts.
type backoff struct {
	first, most time.Duration
	tries       int
}

// next returns the pause before the next attempt: anything up to a window that
// doubles, so that many agents do not return in step.
func (b *backoff) next() time.Duration {
	window := b.most
	if b.tries < 20 {
		window = min(b.first<<b.tries, b.most)
	}
	b.tries++
	return b.first/4 + rand.N(window)
}

func (b *backoff) reset() { b.tries = 0 }

// outage logs the first of several failures in a row, and the end of the row.
type outage struct {
	log   *slog.Logger
	what  string
	count int
	since time.Time
}

func (o *outage) failed(err error) {
	level := slog.LevelDebug
	if o.count++; o.count == 1 {
		level, o.since = slog.LevelWarn, time.Now()
	}
	o.log.Log(context.Background(), level, "the controller does not answer as hoped; it is tried again", slog.String("call", o.what), slog.Any("error", err))
}

func (o *outage) worked() {
	if o.count > 0 {
		o.log.Info("the controller answers again", slog.String("call", o.what), slog.Int("failures", o.count), slog.Duration("outage", time.Since(o.since)))
		o.count = 0
	}
}

// sleep waits for d and reports whether the context still stands.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// around returns d give or take a tenth.
func around(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - d/10 + rand.N(d/5)
}

// cut makes text fit for a report: valid, printable, at most limit bytes.
func cut(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' {
			return ' '
		}
		if unicode.IsControl(r) || r == utf8.RuneError {
			return -1
		}
		return r
	}, text)
	if len(text) <= limit {
		return text
	}
	for limit > 0 && !utf8.RuneStart(text[limit]) {
		limit--
	}
	return text[:limit]
}
