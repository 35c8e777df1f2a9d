// SPDX-License-Identifier: MIT

package vz

import "context"

// Window shows the screen of a process's one machine, for debugging. The framework shows
// windows on the process's first thread only, so whoever has that waits in Show.
type Window struct{ screens chan func() error }

// NewWindow returns a window that shows nothing yet.
func NewWindow() *Window { return &Window{screens: make(chan func() error, 1)} }

// offer tells how to show a machine that runs now.
func (w *Window) offer(show func() error) {
	if w == nil {
		return
	}
	select {
	case w.screens <- show:
	default: // one machine, one window
	}
}

// Show waits until the machine runs and shows it, until the window is closed or the machine
// has ended. It returns nil if ctx ends before.
func (w *Window) Show(ctx context.Context) error {
	select {
	case show := <-w.screens:
		return show()
	case <-ctx.Done():
		return nil
	}
}
