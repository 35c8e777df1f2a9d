// SPDX-License-Identifier: MIT

package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/minifleet/minifleet/crashpoint"
)

// Bounds of what is kept of one failure. VM and guest have their own for their logs.
const (
	keepTime    = 5 * time.Second // for what the guest has to say
	maxDiagKept = 8 << 20
)

// keepFailure writes down what explains a failure, for the operator: first what only
// the guest can tell, and by the function it returns, once the VM has stopped, what
// lies on the host. It never fails a teardown.
func (r *runner) keepFailure(ctx context.Context, end ending) (after func()) {
	if end.failure == "" || r.agent.state.dir == "" {
		return func() {}
	}
	dir := filepath.Join(r.agent.state.dir, dirFailures, r.id)
	complain := func(err error) {
		if err != nil {
			r.log.Warn("diagnostics are incomplete", slog.String("folder", dir), slog.Any("error", err))
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		complain(err)
		return func() {}
	}
	complain(r.writeSummary(dir, end))
	if r.machine != nil {
		if g := r.machine.Guest(); g != nil {
			complain(keepGuest(ctx, g, dir))
		}
	}
	crashpoint.Reached(crashpoint.FailureKept)
	return func() {
		if r.machine != nil {
			complain(r.machine.Keep(dir))
		}
		complain(r.agent.pruneFailures())
	}
}

func (r *runner) writeSummary(dir string, end ending) error {
	o, _ := r.orders()
	raw, err := json.MarshalIndent(map[string]any{
		"runner": r.id, "at": time.Now().UTC(), "failure": end.failure, "result": end.result,
		"pool": o.desire.Pool, "image": o.desire.Image, "scope": o.desire.Scope,
	}, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "failure.json"), append(raw, '\n'), 0o600)
}

// keepGuest asks the guest for the end of its listener's output and its diagnostics.
// A guest that does not answer is often the failure itself, so that is no complaint.
func keepGuest(ctx context.Context, g Guest, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, keepTime)
	defer cancel()
	var asks sync.WaitGroup
	defer asks.Wait()
	var tailErr, diagErr error
	asks.Go(func() {
		if text, err := g.Tail(ctx); err == nil && text != "" {
			tailErr = os.WriteFile(filepath.Join(dir, "runner-output.txt"), []byte(text), 0o600)
		}
	})
	asks.Go(func() { diagErr = keepDiag(ctx, g, filepath.Join(dir, "runner-diag.tar")) })
	asks.Wait()
	return errors.Join(tailErr, diagErr)
}

func keepDiag(ctx context.Context, g Guest, path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	limited := &limitedWriter{w: f, left: maxDiagKept}
	err = g.Diag(ctx, limited)
	closeErr := f.Close()
	if err != nil && limited.left == maxDiagKept {
		return errors.Join(closeErr, os.Remove(path)) // nothing came
	}
	return closeErr
}

// limitedWriter refuses more than its share.
type limitedWriter struct {
	w    io.Writer
	left int
}

var errTooMuch = errors.New("more than is kept")

func (l *limitedWriter) Write(p []byte) (int, error) {
	if len(p) > l.left {
		n, err := l.w.Write(p[:l.left])
		l.left -= n
		return n, cmp.Or(err, errTooMuch)
	}
	n, err := l.w.Write(p)
	l.left -= n
	return n, err
}

// pruneFailures keeps the newest folders.
func (a *Agent) pruneFailures() error {
	a.pruning.Lock()
	defer a.pruning.Unlock()
	root := filepath.Join(a.state.dir, dirFailures)
	entries, err := os.ReadDir(root)
	if err != nil {
		return err
	}
	type folder struct {
		name string
		at   time.Time
	}
	var all []folder
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() {
			all = append(all, folder{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(x, y folder) int { return y.at.Compare(x.at) })
	var errs []error
	for _, f := range all[min(len(all), a.cfg.KeepFailures):] {
		errs = append(errs, os.RemoveAll(filepath.Join(root, f.name)))
	}
	return errors.Join(errs...)
}
