// SPDX-License-Identifier: MIT

package program_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/minifleet/minifleet/program"
)

func TestStop(t *testing.T) {
	broken := errors.New("broken")
	for name, tc := range map[string]struct {
		told bool          // to stop, after a minute
		take time.Duration // from there to the work's end
		err  error         // of the work
		want error
		said string // in the log
	}{
		"ends by itself":        {want: nil},
		"fails by itself":       {err: broken, want: broken},
		"stops":                 {told: true, take: 9 * time.Second, said: "msg=stopped took=9s"},
		"fails to stop well":    {told: true, take: 9 * time.Second, err: broken, want: broken, said: `cause=SIGTERM finishing="this and that" at_most=10s`},
		"takes until the bound": {told: true, take: 10*time.Second - 1, said: "signal again to end at once"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				defer cancel(nil)
				if tc.told {
					time.AfterFunc(time.Minute, func() { cancel(program.Signal{Signal: syscall.SIGTERM}) })
				}
				var log bytes.Buffer
				stop := program.Stop{Finishing: "this and that", Within: 10 * time.Second, Log: slog.New(slog.NewTextHandler(&log, nil))}
				err := stop.Run(ctx, func(ctx context.Context, _ *program.Parts) error {
					if tc.told {
						<-ctx.Done()
						time.Sleep(tc.take) // of the bubble's clock
					}
					return tc.err
				})
				if !errors.Is(err, tc.want) || (err == nil) != (tc.want == nil) {
					t.Errorf("error %v, want %v", err, tc.want)
				}
				if !strings.Contains(log.String(), tc.said) || (tc.said == "") != (log.Len() == 0) {
					t.Errorf("log %q, want %q in it", &log, tc.said)
				}
			})
		})
	}
}

func TestStopIsGivenUp(t *testing.T) {
	for name, tc := range map[string]struct {
		parts []string
		want  string
	}{
		"with parts":    {[]string{"the writer", "requests", "requests"}, "not finished: requests, the writer"},
		"without parts": {nil, "not finished: its last steps"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				stuck := make(chan struct{})
				defer close(stuck) // a process would end here
				hang := func() error { <-stuck; return nil }
				began := time.Now()
				err := program.Stop{Within: 10 * time.Second}.Run(ctx, func(_ context.Context, p *program.Parts) error {
					_ = p.Do("what is over", func() error { return nil })
					for _, name := range tc.parts {
						go func() { _ = p.Do(name, hang) }()
					}
					return hang()
				})
				if err == nil || !strings.Contains(err.Error(), "given up after 10s") || !strings.HasSuffix(err.Error(), tc.want) {
					t.Errorf("error %v, want %q", err, tc.want)
				}
				if d := time.Since(began); d != 10*time.Second {
					t.Errorf("after %s", d)
				}
			})
		})
	}
}
