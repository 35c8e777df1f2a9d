// SPDX-License-Identifier: MIT

package archives

import (
	"context"
	"errors"
	"sync"
)

// errAbandoned is why a fetch ended that nobody waited for any more.
var errAbandoned = errors.New("nobody waits for it any more")

// flight is one fetch and those who wait for it.
type flight struct {
	cancel context.CancelCauseFunc

	mu    sync.Mutex // guards the rest
	users int
	at    Progress
	moved chan struct{} // closed and replaced when at changes
	done  chan struct{}
	err   error
}

func (f *flight) join() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
}

// leave ends the fetch when nobody is left, and waits for its end then. One that is
// ending already is not revived: who joins it begins anew.
func (f *flight) leave() {
	f.mu.Lock()
	f.users--
	last := f.users == 0
	f.mu.Unlock()
	if last {
		f.cancel(errAbandoned)
		<-f.done
	}
}

func (f *flight) show(p Progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at = p
	close(f.moved)
	f.moved = make(chan struct{})
}

func (f *flight) end(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	close(f.done)
}

// wait returns when the fetch is over, or with the cause of ctx.
func (f *flight) wait(ctx context.Context, progress func(Progress)) error {
	for {
		f.mu.Lock()
		at, moved := f.at, f.moved
		f.mu.Unlock()
		if at != (Progress{}) {
			progress(at)
		}
		select {
		case <-f.done:
			return f.err
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
