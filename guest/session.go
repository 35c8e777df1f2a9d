// SPDX-License-Identifier: MIT

package guest

import (
	"context"
	"os/exec"
	"runtime"
	"strconv"
	"sync"
	"time"
)

// session knows whether the GUI session that a runner needs is there. Once it was, it
// counts as there: a session that ends takes the runner with it, and shows so.
type session struct {
	look func(context.Context) bool // nil: none is needed

	mu   sync.Mutex // held over look, so that many questions make one
	seen bool
}

// sessionLimit bounds one look.
const sessionLimit = 5 * time.Second

func (s *session) ready(ctx context.Context) bool {
	if s.look == nil {
		return true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.seen {
		ctx, cancel := context.WithTimeout(ctx, sessionLimit)
		defer cancel()
		s.seen = s.look(ctx)
	}
	return s.seen
}

// sessionLook asks launchd whether the user is logged in to the Mac's screen. Other
// systems have nothing to wait for.
func sessionLook(who account) func(context.Context) bool {
	if runtime.GOOS != "darwin" {
		return nil
	}
	return func(ctx context.Context) bool {
		return exec.CommandContext(ctx, "/bin/launchctl", "print", "gui/"+strconv.FormatUint(uint64(who.uid), 10)).Run() == nil
	}
}
